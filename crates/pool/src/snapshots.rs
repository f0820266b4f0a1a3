//! Snapshots: copies of a volume at one instant, consistent as after a loss of power of a well-behaved filesystem.
use std::path::Path;

use crate::{
    Backend, Content, Id, Pool, Snapshot, Volume,
    error::{PoolError, failed},
};

/// A frozen filesystem stops its users: one failure to let it go is not taken for an answer.
const THAW_TRIES: usize = 3;

/// A snapshot that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Asking again for the same name gives the same snapshot.
    pub name: String,
    pub volume: Id,
}

impl Pool {
    /// Takes a snapshot, or finds the one that was taken for this name.
    ///
    /// # Errors
    /// The name has a snapshot of another volume, the volume is missing or a directory, there is no room, or the machine failed.
    pub fn take_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot, PoolError> {
        let id = Id::of_name(&new.name);
        let _turn = self.turn(&Id::of_name(&format!("snapshot/{id}")))?;
        if let Some(found) = self.snapshot(&id) {
            if found.volume != new.volume {
                let difference = format!("it is of volume {}", found.volume);
                return Err(PoolError::Exists { what: "snapshot", name: new.name.clone(), difference });
            }
            return Ok(found);
        }
        let volume = self.existing(&new.volume)?;
        if volume.backend == Backend::Directory {
            let why =
                format!("volume {} is a directory, of which there are no snapshots; use backend=image", volume.id);
            return Err(PoolError::Invalid(why));
        }
        let snapshot = Snapshot {
            id,
            name: new.name.clone(),
            volume: volume.id.clone(),
            bytes: volume.bytes,
            backend: volume.backend,
            content: volume.content,
            made: self.seconds(),
        };
        self.look_again(&snapshot.id, self.make_snapshot(&snapshot))?;
        self.remember_snapshot(snapshot.clone());
        Ok(snapshot)
    }

    /// Removes a snapshot. What is not there counts as removed. Volumes made from it are not touched.
    ///
    /// # Errors
    /// The machine failed.
    pub fn delete_snapshot(&self, id: &Id) -> Result<(), PoolError> {
        let _turn = self.turn(&Id::of_name(&format!("snapshot/{id}")))?;
        if self.snapshot(id).is_none() {
            return Ok(());
        }
        let dir = self.snapshot_dir(id);
        // Out of sight by one rename first: a half removed one would be found damaged.
        let half = self.dir.join("making").join(format!("removed.{id}"));
        // What an earlier try left there.
        self.kernel.remove(&half).map_err(failed("remove", &half))?;
        self.look_again(id, self.kernel.move_to(&dir, &half).map_err(failed("remove", &dir)))?;
        self.forget_snapshot(id);
        self.kernel.remove(&half).map_err(failed("remove", &half))
    }

    /// A process that died while it copied left a filesystem frozen, and everybody who writes to it waiting.
    pub(crate) fn thaw_all(&self) -> Result<(), PoolError> {
        for volume in self.volumes() {
            if let Some(staged) = self.staged_at(&volume.id)? {
                // Fails where it is not frozen, which is what is wanted.
                let _ = self.kernel.thaw(&staged);
            }
        }
        Ok(())
    }

    /// Copies what holds a volume's data, as it is at one instant, to a directory, while it may be in use.
    pub(crate) fn copy_volume(&self, id: &Id, to: &Path) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        self.copy_quiet(&self.existing(id)?, to)
    }

    /// The same, in the volume's turn.
    pub(crate) fn copy_quiet(&self, volume: &Volume, to: &Path) -> Result<(), PoolError> {
        let copy = || self.copy(volume.backend, &self.volume_dir(&volume.id), to);
        let has_mount = volume.backend == Backend::Image && volume.content != Content::Block;
        let Some(staged) = self.staged_at(&volume.id)?.filter(|_| has_mount) else {
            // Nobody writes, or writes go to the raw device, whose users know what is durable, or the copy is one instant.
            return copy();
        };
        let frozen = self.kernel.freeze(&staged).map_err(failed("freeze", &staged));
        let copied = frozen.and_then(|()| copy());
        // Also where freezing failed: it may have acted, and nobody could write ever after.
        let thawed = self.let_go(&staged);
        copied.and(thawed)
    }

    fn let_go(&self, staged: &Path) -> Result<(), PoolError> {
        let mut last = Ok(());
        for _ in 0..THAW_TRIES {
            last = self.kernel.thaw(staged);
            match &last {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => return Ok(()),
                Err(_) => {}
            }
        }
        last.map_err(failed("let writes go on at", staged))
    }
}
