//! `holdfast demo`: the labs of the study notes, end to end, against a real instance on a throw-away data directory.
//!
//! Starts this program again as `holdfast up`, talks to it as any client would, kills and restarts it on the way.
mod images;
mod labs;
mod world;

use std::{process::ExitCode, time::Instant};

use crate::{Outcome, cli::DemoArgs, client::Error};

use world::World;

pub async fn run(args: DemoArgs) -> Outcome {
    let started = Instant::now();
    let mut world = World::start(&args).await?;
    let outcome = tokio::select! {
        outcome = labs::all(&mut world) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    let cleaned = world.finish(outcome.is_err()).await;
    outcome?;
    cleaned?;
    println!("all labs passed in {:.1} s", started.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// Runs one step of a lab, telling its name first and its time when it is done.
pub async fn step<T>(name: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    use std::io::Write;
    print!("  {name} ... ");
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    match work.await {
        Ok(value) => {
            println!("ok ({:.2} s)", started.elapsed().as_secs_f32());
            Ok(value)
        }
        Err(error) => {
            println!("FAILED");
            Err(format!("{name}: {}", base::chain(error.as_ref())).into())
        }
    }
}
