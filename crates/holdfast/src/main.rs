//! The `holdfast` program: arguments, wiring, and the commands that people type.
//!
//! The only crate that reads arguments or the environment. Absent on purpose: rules about objects (see `api`, `controllers`).
mod cli;
mod client;
mod csi_driver;
mod demo;
mod disk;
mod errors;
mod image;
mod registries;
mod up;
mod volume;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;

/// Many small objects of all ages: with the C library's allocator a third of the memory lies idle between them (ADR 0015).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A container's shim is this same program started again: it must act before any thread exists.
    if let Some(code) = runtime::maybe_run_shim() {
        return code;
    }
    // So are the one that clones a repository, and the one that serves a volume of an NFS server.
    if let Some(code) = git::maybe_run() {
        return code;
    }
    if let Some(code) = nfs::maybe_serve() {
        return code;
    }
    // So are the processes of iSCSI volumes.
    if let Some(code) = iscsi::maybe_run() {
        return code;
    }
    let cli = cli::Cli::parse();
    if let Err(error) = start_logging(&cli) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("holdfast").build();
    let tokio = match built {
        Ok(tokio) => tokio,
        Err(error) => return fail(&error),
    };
    let outcome = tokio.block_on(run(cli.command));
    tokio.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(code) => code,
        Err(error) => fail(error.as_ref()),
    }
}

/// What a command ends with: an exit status, or an error told in one sentence.
pub type Outcome = Result<ExitCode, Box<dyn std::error::Error + Send + Sync>>;

async fn run(command: cli::Command) -> Outcome {
    use cli::Command;
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Csi(args) => csi_driver::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Volume(args) => volume::run(args).await,
        Command::Disk(args) => disk::run(args).await,
        Command::Image(args) => image::run(args).await,
        Command::Apply(args) => client::apply::run(args).await,
        Command::Get(args) => client::get::run(args).await,
        Command::Describe(args) => client::describe::run(args).await,
        Command::Why(args) => client::why::run(args).await,
        Command::Delete(args) => client::delete::run(args).await,
        Command::Logs(args) => client::logs::run(args).await,
        Command::Exec(args) => client::exec::run(args).await,
        Command::PortForward(args) => client::port_forward::run(args).await,
        Command::Version => {
            errors::say(format_args!("holdfast {} (Kubernetes API 1.36)", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion { shell } => {
            cli::completion(shell)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn start_logging(cli: &cli::Cli) -> Result<(), String> {
    let text = cli.log.as_deref().unwrap_or("warn");
    // TLS's verifier repeats as ERROR what the one who asked for the connection is told, and tells, anyway.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("rustls_platform_verifier=off,{text}"));
    let filter = filter.map_err(|e| format!("--log {text:?} is no filter: {e}; write for example info,node=debug"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    if error.is::<errors::Unread>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("holdfast: {}", errors::story(error));
    if error.is::<errors::Misused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}
