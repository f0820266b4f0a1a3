//! The working tree.
use std::path::Path;

use gix::{ObjectId, Repository, worktree::stack::state::attributes::Source};

use crate::{
    inspect::inspect,
    process::{Cloned, Failed, Limits},
    watch::Watch,
};

/// Writes the files of a commit beside the repository's `.git`, and its index.
pub(crate) fn check_out(
    repo: &Repository,
    commit: Option<ObjectId>,
    limits: &Limits,
    watch: &Watch,
) -> Result<Cloned, Failed> {
    let Some(commit) = commit else { return Ok(Cloned { commit: None, entries: 0 }) };
    let broken = |e: gix::Error| crate::clone::failed(&e, limits);
    let tree = repo.find_commit(commit).and_then(|c| c.tree_id()).map_err(broken)?.detach();
    let size = inspect(repo, tree, limits, watch)?;
    let history = bytes_below(&repo.git_dir().join("objects"))
        .map_err(|e| Failed::repository(format!("its history cannot be measured: {e}")))?;
    if history.saturating_add(size.bytes) > limits.bytes {
        return Err(Failed::repository(format!(
            "it has {} MiB of history and {} MiB of files; the limit is {} MiB",
            history >> 20,
            size.bytes >> 20,
            limits.bytes >> 20
        )));
    }
    let workdir = repo.workdir().ok_or_else(|| Failed::repository("it has no working tree"))?;
    let mut index = repo.index_from_tree(&tree).map_err(broken)?;
    let mut options = repo.checkout_options(Source::IdMapping).map_err(broken)?;
    options.destination_is_initially_empty = true;
    options.overwrite_existing = false;
    options.keep_going = false;
    options.validate.protect_windows = false;
    options.validate.protect_hfs = true;
    options.validate.protect_ntfs = true;
    let objects = repo.objects.clone().into_arc().map_err(|e| Failed::repository(format!("cannot be read: {e}")))?;
    let outcome = gix::worktree::state::checkout(
        &mut index,
        workdir,
        objects,
        &watch.child(),
        &watch.child(),
        watch.interrupt,
        options,
    )
    .map_err(broken)?;
    if let Some(collision) = outcome.collisions.first() {
        return Err(Failed::repository(format!("two of its files have one place: {:?}", collision.path.to_string())));
    }
    if let Some(record) = outcome.errors.first() {
        return Err(Failed::repository(format!(
            "{:?} cannot be checked out: {}",
            record.path.to_string(),
            record.error
        )));
    }
    if !outcome.delayed_paths_unknown.is_empty() || !outcome.delayed_paths_unprocessed.is_empty() {
        return Err(Failed::repository("it was not checked out as a whole"));
    }
    index.write(gix::index::write::Options::default()).map_err(broken)?;
    Ok(Cloned { commit: Some(commit.to_string()), entries: size.entries })
}

/// Bytes of all files below a directory that only this process writes.
fn bytes_below(top: &Path) -> std::io::Result<u64> {
    let (mut bytes, mut todo) = (0, vec![top.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            match metadata.is_dir() {
                true => todo.push(entry.path()),
                false => bytes += metadata.len(),
            }
        }
    }
    Ok(bytes)
}
