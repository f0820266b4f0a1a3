//! Keeps container logs from growing without end: 10 MiB a file, five files, as upstream by default.
use std::{path::Path, sync::Arc, time::Duration};

use base::chain;
use runtime::ContainerState;

use super::Shared;
use crate::{logs::tail, node::Workers, spec::container::log_path};

const EVERY: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 10 << 20;
/// The live file included.
const MAX_FILES: usize = 5;

/// Runs until dropped.
pub async fn watch(shared: Arc<Shared>, workers: Workers) {
    loop {
        tokio::time::sleep(EVERY).await;
        let all: Vec<_> = workers.lock().values().map(|h| h.view.borrow().clone()).collect();
        for view in all {
            let Some(sandbox) = &view.sandbox else { continue };
            for c in &sandbox.containers {
                if !matches!(c.state, ContainerState::Running { .. }) {
                    continue;
                }
                let log = log_path(&shared.config.layout, &view.pod, &c.name, c.attempt);
                if !tokio::fs::metadata(&log).await.is_ok_and(|m| m.len() > MAX_BYTES) {
                    continue;
                }
                if let Err(error) = rotate(&log, &shared.clock.now().strftime("%Y%m%d-%H%M%S").to_string()) {
                    tracing::warn!(%error, log = %log.display(), "could not rotate a log");
                    continue;
                }
                if let Err(error) = shared.runtime.reopen_log(&c.id).await {
                    tracing::warn!(error = chain(&error), log = %log.display(), "a rotated log goes on in its old file");
                }
            }
        }
    }
}

/// Renames the live file and removes the oldest ones.
fn rotate(log: &Path, stamp: &str) -> std::io::Result<()> {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    std::fs::rename(log, name)?;
    let files = tail::files(log);
    // The live file's place is in the list though it is to be made anew.
    for old in files.iter().take(files.len().saturating_sub(MAX_FILES)) {
        std::fs::remove_file(old)?;
    }
    Ok(())
}

#[test]
fn keeps_the_newest_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("0.log");
    for i in 0..8 {
        std::fs::write(&log, i.to_string()).expect("written");
        rotate(&log, &format!("20260102-00000{i}")).expect("rotated");
    }
    let files = tail::files(&log);
    let old: Vec<_> = files.iter().filter_map(|f| std::fs::read_to_string(f).ok()).collect();
    assert_eq!(old, ["4", "5", "6", "7"]);
}
