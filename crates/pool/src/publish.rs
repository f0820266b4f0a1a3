//! Showing a staged volume at more paths, to those who may have it.
use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sys::{Access, Bind, ReadOnly};

use crate::{
    Backend, Content, Id, Pool,
    error::{PoolError, failed},
    record::{decode, encode},
    stage::{is_mounted, parts},
};

/// Where a volume is published, in its directory: a list of [`Publication`]s.
const PUBLISHED: &str = "published";

/// How a staged volume is published.
#[derive(Debug, Clone, Copy)]
pub struct Publish<'a> {
    /// Where it is staged.
    pub staged: &'a Path,
    /// A directory, or a file for a block volume; made if it is not there.
    pub at: &'a Path,
    pub read_only: bool,
    /// Only if it is published nowhere else, and nowhere else while it is here.
    pub alone: bool,
}

/// What is written down before a volume is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Publication {
    at: PathBuf,
    read_only: bool,
    alone: bool,
}

impl Pool {
    /// Where the volume was to be published, mounted or not.
    fn published(&self, id: &Id) -> Result<Vec<Publication>, PoolError> {
        let file = self.volume_dir(id).join(PUBLISHED);
        match self.kernel.read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => decode(&file, &other.map_err(failed("read", &file))?),
        }
    }

    fn set_published(&self, id: &Id, all: &[Publication]) -> Result<(), PoolError> {
        let file = self.volume_dir(id).join(PUBLISHED);
        self.kernel.write(&file, &encode(&all)).map_err(failed("write", &file))
    }

    /// A path where the volume is mounted now: of its users, or where it is staged for them.
    ///
    /// # Errors
    /// Its records or the table of mounts cannot be read.
    pub fn mounted_at(&self, id: &Id) -> Result<Option<PathBuf>, PoolError> {
        match self.mounted_publication(id)? {
            None => self.staged_at(id),
            published => Ok(published),
        }
    }

    /// A path where the volume is published and mounted.
    pub(crate) fn mounted_publication(&self, id: &Id) -> Result<Option<PathBuf>, PoolError> {
        for one in self.published(id)? {
            if is_mounted(self.sys(), &one.at)? {
                return Ok(Some(one.at));
            }
        }
        Ok(None)
    }

    /// Writes down that a volume is going to be at `publish.at`, if it may be.
    fn note(&self, id: &Id, publish: &Publish<'_>) -> Result<(), PoolError> {
        let new = Publication { at: publish.at.to_owned(), read_only: publish.read_only, alone: publish.alone };
        let mut all = self.published(id)?;
        let (mut same, mut kept) = (false, Vec::with_capacity(all.len() + 1));
        for other in all.drain(..) {
            let here = other.at == new.at;
            if !(here && other == new) && (here || other.alone || new.alone) && is_mounted(self.sys(), &other.at)? {
                return Err(conflict(id, &other, &new));
            }
            same |= here && other == new;
            if !here || other == new {
                kept.push(other);
            }
        }
        if same {
            return Ok(());
        }
        kept.push(new);
        self.set_published(id, &kept)
    }

    /// Shows a staged volume at one more path.
    ///
    /// # Errors
    /// No such volume, it is not staged, somebody has it alone, it is there in another way, or the machine failed.
    pub fn publish(&self, id: &Id, publish: &Publish<'_>) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        let source = match (volume.backend, &volume.content) {
            (Backend::Directory | Backend::Subvolume, _) => self.data(id),
            // A mount that refuses writes does not keep them from a device; the device itself does, whoever opens it.
            (Backend::Image, Content::Block) if publish.read_only => self.device(id, Access::Read)?,
            (Backend::Image, Content::Block) => self.device(id, Access::Write)?,
            (Backend::Image, Content::Filesystem(_)) => match self.staged_at(id)? {
                Some(at) if at == publish.staged => at,
                _ => {
                    let why = format!("volume {id} is not staged at {}", publish.staged.display());
                    return Err(PoolError::State(why));
                }
            },
        };
        self.note(id, publish)?;
        self.make_target(publish.at, volume.content != Content::Block)?;
        if is_mounted(self.sys(), publish.at)? {
            return Ok(());
        }
        let from = self.sys().open(&source).map_err(failed("open", &source))?;
        let to = self.sys().open(publish.at).map_err(failed("open", publish.at))?;
        let read_only = if publish.read_only { ReadOnly::Top } else { ReadOnly::No };
        let bind = Bind { read_only, ..Bind::default() };
        self.sys().bind(&from, &to, &bind).map_err(failed("mount on", publish.at))
    }

    /// Undoes publishing, and removes the path. What is not there counts as done.
    ///
    /// # Errors
    /// Somebody uses it, or the machine failed.
    pub fn unpublish(&self, id: &Id, at: &Path) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        self.unmount(at)?;
        if let Some(volume) = self.volume(id) {
            let mut all = self.published(id)?;
            let before = all.len();
            all.retain(|other| other.at != at);
            if all.is_empty() && volume.backend != Backend::Image {
                self.unmount_inside(&self.data(id))?;
            }
            if all.len() != before {
                self.set_published(id, &all)?;
            }
        }
        let (above, name) = parts(at)?;
        let above_dir = match self.sys().open(above) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("open", above))?,
        };
        let removed = match self.sys().stat_at(&above_dir, name) {
            Ok(found) if found.is_dir() => self.sys().remove_dir(&above_dir, name),
            Ok(_) => self.sys().remove_file(&above_dir, name),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", at)(e)),
            _ => Ok(()),
        }
    }
}

/// Why a volume cannot be published as wanted while it is published as it is.
fn conflict(id: &Id, is: &Publication, wanted: &Publication) -> PoolError {
    let at = is.at.display();
    if is.at == wanted.at {
        let how = if is.read_only { "read-only" } else { "for writing" };
        let difference = format!("it is published there {how}{}", if is.alone { ", for one pod alone" } else { "" });
        return PoolError::Exists { what: "publication of the volume at", name: at.to_string(), difference };
    }
    PoolError::State(format!("volume {id} is for one pod alone, and is published at {at}"))
}
