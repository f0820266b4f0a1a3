//! Volumes that were deleted and may come back.
use std::path::PathBuf;

use crate::{
    Id, Pool, Volume,
    error::{PoolError, failed},
    pool::RECORD,
    record::decode,
};

/// A deleted volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    pub volume: Volume,
    /// When it was deleted, in seconds since 1970.
    pub deleted: u64,
    /// What removing it would give back, in bytes.
    pub takes_bytes: u64,
}

impl Pool {
    fn trashed_dir(&self, id: &Id, deleted: u64) -> PathBuf {
        self.trash().join(format!("{id}.{deleted}"))
    }

    /// What is in the trash, oldest first.
    ///
    /// # Errors
    /// The trash cannot be read.
    pub fn trashed(&self) -> Result<Vec<Trashed>, PoolError> {
        let dir = self.trash();
        let mut found = Vec::new();
        for name in self.kernel.names(&dir).map_err(failed("list", &dir))? {
            let Some(deleted) = name.rsplit_once('.').and_then(|(_, seconds)| seconds.parse().ok()) else { continue };
            let path = dir.join(&name).join(RECORD);
            // Half removed: no record, and nothing to give back.
            let Ok(bytes) = self.kernel.read(&path) else { continue };
            let volume: Volume = decode(&path, &bytes)?;
            let (_, takes_bytes) = self.kernel.image_size(&dir.join(&name).join("image")).unwrap_or_default();
            found.push(Trashed { volume, deleted, takes_bytes });
        }
        found.sort_by(|a, b| (a.deleted, &a.volume.id).cmp(&(b.deleted, &b.volume.id)));
        Ok(found)
    }

    pub(crate) fn trash_bytes(&self) -> u64 {
        self.trashed().map_or(0, |all| all.iter().map(|t| t.takes_bytes).sum())
    }

    pub(crate) fn to_trash(&self, id: &Id) -> Result<(), PoolError> {
        let from = self.volume_dir(id);
        let mut deleted = self.seconds();
        loop {
            match self.kernel.move_to(&from, &self.trashed_dir(id, deleted)) {
                // One of that name was deleted in the same second.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => deleted += 1,
                other => return other.map_err(failed("delete", &from)),
            }
        }
    }

    /// Removes for good what was deleted before that time (seconds since 1970).
    ///
    /// # Errors
    /// Something could not be removed; the rest may be gone.
    pub fn empty_trash(&self, before: u64) -> Result<(), PoolError> {
        for old in self.trashed()?.iter().filter(|t| t.deleted < before) {
            self.shred(old)?;
        }
        Ok(())
    }

    /// Removes for good what was deleted so long ago.
    ///
    /// # Errors
    /// As [`Pool::empty_trash`].
    pub fn empty_trash_older_than(&self, kept: std::time::Duration) -> Result<(), PoolError> {
        self.empty_trash(self.seconds().saturating_sub(kept.as_secs()))
    }

    /// Removes for good the oldest deleted volumes until `bytes` more fit.
    pub(crate) fn empty_trash_for(&self, bytes: u64) -> Result<(), PoolError> {
        for old in self.trashed()? {
            if self.room()?.saturating_sub(self.trash_bytes()) >= bytes {
                break;
            }
            self.shred(&old)?;
        }
        Ok(())
    }

    fn shred(&self, old: &Trashed) -> Result<(), PoolError> {
        let dir = self.trashed_dir(&old.volume.id, old.deleted);
        tracing::info!(volume = %old.volume.id, "a deleted volume is removed for good");
        self.kernel.remove(&dir).map_err(failed("remove", &dir))
    }

    /// Brings back the volume of that id that was deleted last.
    ///
    /// # Errors
    /// It is not in the trash, or there is one of that id again.
    pub fn undelete(&self, id: &Id) -> Result<Volume, PoolError> {
        let _turn = self.turn(id)?;
        if self.volume(id).is_some() {
            return Err(PoolError::State(format!("there is a volume {id} again; delete or rename that one first")));
        }
        let mut all = self.trashed()?;
        all.retain(|t| t.volume.id == *id);
        let last = all.pop().ok_or_else(|| PoolError::NotFound { what: "deleted volume", id: id.to_string() })?;
        let from = self.trashed_dir(id, last.deleted);
        let moved = self.kernel.move_to(&from, &self.volume_dir(id)).map_err(failed("bring back", &from));
        self.look_again(id, moved)?;
        self.remember(last.volume.clone());
        Ok(last.volume)
    }
}
