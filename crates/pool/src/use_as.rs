//! Disks that are made before it is known what they will be.
use crate::{Content, Id, Pool, Volume, error::PoolError};

impl Pool {
    /// Lets a volume that nobody uses be something else to its users from now on. What is on it stays.
    ///
    /// # Errors
    /// No such volume, it is a directory, it is in use, or the machine failed.
    pub fn use_as(&self, id: &Id, content: Content) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        if volume.content == content {
            return Ok(());
        }
        if volume.backend != crate::Backend::Image {
            return Err(PoolError::Invalid(format!("volume {id} is a directory, and can be nothing else")));
        }
        self.release(&volume)?;
        self.write_record(&Volume { content, ..volume })
    }
}
