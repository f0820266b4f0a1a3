//! `holdfast csi`: the driver of local volumes alone. Wiring only.
use std::{fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use driver::Driver;
use pool::Pool;
use sys::RealSys;

use crate::{
    Outcome,
    cli::CsiArgs,
    errors::{Doing, said, say},
    up::{preflight, stop_signal},
};

/// How often what was deleted long enough ago is looked for: in a tenth of the time that it is kept, within these bounds.
const TRASH_PERIODS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(600)];

/// The path of a socket that is named as CSI's documents do.
pub fn socket(endpoint: &str) -> Result<PathBuf, crate::client::Error> {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    if path.is_absolute() {
        return Ok(path);
    }
    said(format!(
        "--endpoint {endpoint:?} is no absolute path of a socket; write for example unix:///run/holdfast/csi.sock"
    ))
}

pub async fn run(args: CsiArgs) -> Outcome {
    let stop = stop_signal()?;
    let socket = socket(&args.endpoint)?;
    if !rustix::process::geteuid().is_root() {
        return said("making and mounting volumes needs root; start with sudo");
    }
    let node = preflight::node_name(args.node_name.as_deref())?;
    for above in [socket.parent(), args.pool.parent()].into_iter().flatten() {
        fs::create_dir_all(above).doing(|| format!("make {}", above.display()))?;
    }
    let listener = csi::Listener::bind(&socket)?;
    let pool = Arc::new(Pool::open(&args.pool, Arc::new(RealSys))?);
    let emptying = tokio::spawn(empty_trash(pool.clone(), args.deleted.kept()));
    let driver = Driver::new(pool.clone(), node.clone());
    let driver = if args.grow_on_node { driver.growing_on_node() } else { driver };
    let mut routes = driver.routes();
    driver::admin::add_to(&mut routes, driver::NAME, pool, stop.clone());
    say(format_args!("{} serves node {node} on {}", driver::NAME, socket.display()))?;
    let served = listener.serve(routes, stop.cancelled_owned()).await;
    emptying.abort();
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Removes for good what nobody asked for in time.
pub async fn empty_trash(pool: Arc<Pool>, kept: Duration) -> std::convert::Infallible {
    let [least, most] = TRASH_PERIODS;
    let mut period = tokio::time::interval((kept / 10).clamp(least, most));
    loop {
        period.tick().await;
        let pool = pool.clone();
        let emptied = tokio::task::spawn_blocking(move || pool.empty_trash_older_than(kept)).await;
        if let Ok(Err(error)) = emptied {
            tracing::warn!(error = base::chain(&error), "the trash could not be emptied; it is tried again");
        }
    }
}
