//! Looks through a tree before anything of it is written.
use std::collections::HashSet;

use gix::{ObjectId, Repository, objs::tree::EntryKind};

use crate::{
    process::{Failed, Limits},
    request::is_tree_name,
    watch::Watch,
};

/// Directories in each other. More are no working tree, and no path to them can be written.
const DEEPEST: usize = 512;

/// How much a tree has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub entries: u64,
    pub bytes: u64,
}

/// Sums a tree up, in which each name leads to one thing and none leads elsewhere. A tree that is in it many times counts
/// each time, so that a small repository of an enormous tree is found out soon.
pub(crate) fn inspect(repo: &Repository, tree: ObjectId, limits: &Limits, watch: &Watch) -> Result<Size, Failed> {
    let broken = |id: ObjectId| Failed::repository(format!("its object {id} is missing or broken"));
    let mut size = Size::default();
    let mut todo = vec![(tree, 0)];
    while let Some((id, depth)) = todo.pop() {
        let tree = repo.find_tree(id).map_err(|_| broken(id))?;
        let mut names = HashSet::new();
        for entry in tree.iter() {
            let entry = entry.map_err(|_| broken(id))?;
            let (name, kind) = (entry.filename(), entry.mode().kind());
            if !is_tree_name(name, kind == EntryKind::Link) || !names.insert(name.to_vec()) {
                return Err(Failed::repository(format!(
                    "its tree {id} has a name that cannot be: {:?}",
                    name.to_string()
                )));
            }
            size.entries += 1;
            watch.tick();
            match kind {
                EntryKind::Tree if depth >= DEEPEST => {
                    return Err(Failed::repository(format!("its directories are more than {DEEPEST} deep")));
                }
                EntryKind::Tree => todo.push((entry.object_id(), depth + 1)),
                EntryKind::Commit => {}
                EntryKind::Blob | EntryKind::BlobExecutable | EntryKind::Link => {
                    let header = repo.find_header(entry.object_id()).map_err(|_| broken(entry.object_id()))?;
                    size.bytes = size.bytes.saturating_add(header.size());
                }
            }
            if size.entries > limits.entries {
                return Err(Failed::repository(format!(
                    "it has more than {} files and directories, which is the limit",
                    limits.entries
                )));
            }
        }
    }
    Ok(size)
}
