//! From the words of `revision` to a commit, as `git checkout` reads them.
use gix::{ObjectId, Repository};

use crate::process::Failed;

/// Where branches of the server are.
pub(crate) const REMOTE: &str = "refs/remotes/origin/";

/// Lets `HEAD` be what the revision says, and tells the commit; `None`: the repository has none at all.
pub(crate) fn settle(repo: &Repository, revision: &str) -> Result<Option<ObjectId>, Failed> {
    let trouble = |e: gix::Error| Failed::repository(format!("its references cannot be used: {}", first(&e)));
    let mut head = repo.head().map_err(trouble)?;
    let named = |name: &str| repo.try_find_reference(name).ok().flatten();
    if revision.is_empty() {
        if let Some(id) = head.try_peel_to_id().map_err(trouble)? {
            return commit(repo, id.detach(), "HEAD").map(Some);
        }
        let branches = repo.references().map_err(trouble)?;
        return match branches.prefixed(REMOTE).map_err(trouble)?.next() {
            None => Ok(None),
            Some(_) => Err(Failed::revision(
                "is empty, and the repository's HEAD refers to a branch that it does not have; name a branch, tag or commit",
            )),
        };
    }
    let branch = format!("refs/heads/{revision}");
    if let Some(mut reference) = named(&branch) {
        let id = reference.peel_to_id().map_err(trouble)?.detach();
        let id = commit(repo, id, revision)?;
        point(repo, &format!("ref: {branch}"))?;
        return Ok(Some(id));
    }
    if let Ok(id) = repo.rev_parse_single(revision) {
        let id = commit(repo, id.detach(), revision)?;
        point(repo, &id.to_string())?;
        return Ok(Some(id));
    }
    let Some(mut reference) = named(&format!("{REMOTE}{revision}")) else {
        return Err(Failed::revision(format!(
            "pathspec {revision:?} did not match any branch, tag or commit known to the repository"
        )));
    };
    let id = reference.peel_to_id().map_err(trouble)?.detach();
    let id = commit(repo, id, revision)?;
    begin(repo, &branch, id)?;
    follow(repo, revision)?;
    point(repo, &format!("ref: {branch}"))?;
    Ok(Some(id))
}

fn first(error: &gix::Error) -> String {
    error.iter_errors().next().map(ToString::to_string).unwrap_or_default()
}

/// The commit that an object is, or that a tag leads to.
fn commit(repo: &Repository, id: ObjectId, revision: &str) -> Result<ObjectId, Failed> {
    let found = repo.find_object(id).and_then(|object| object.peel_to_commit());
    found.map(|commit| commit.id).map_err(|_| Failed::revision(format!("{revision:?} is no commit")))
}

fn point(repo: &Repository, head: &str) -> Result<(), Failed> {
    std::fs::write(repo.git_dir().join("HEAD"), format!("{head}\n"))
        .map_err(|e| Failed::repository(format!("its HEAD cannot be written: {e}")))
}

/// Makes a branch. Its name is one: the server's has it.
fn begin(repo: &Repository, branch: &str, id: ObjectId) -> Result<(), Failed> {
    let file = repo.git_dir().join(branch);
    let above = file.parent().unwrap_or(repo.git_dir());
    std::fs::create_dir_all(above)
        .and_then(|()| std::fs::write(&file, format!("{id}\n")))
        .map_err(|e| Failed::repository(format!("its branch cannot be made: {e}")))
}

/// Lets a branch know the server's, as `git pull` needs it.
fn follow(repo: &Repository, branch: &str) -> Result<(), Failed> {
    use std::io::Write;
    let text = format!("[branch {}]\n\tremote = origin\n\tmerge = refs/heads/{branch}\n", quoted(branch));
    std::fs::OpenOptions::new()
        .append(true)
        .open(repo.git_dir().join("config"))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| Failed::repository(format!("its configuration cannot be written: {e}")))
}

/// As git's configuration has a text that may hold anything but control characters.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
