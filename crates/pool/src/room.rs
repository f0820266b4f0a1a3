//! How much room there is, and sizes.
use crate::{Pool, error::PoolError, error::failed};

/// Sizes are whole multiples of this, in bytes.
pub(crate) const STEP_BYTES: u64 = 1 << 20;
/// What is made where no size is asked for, in bytes.
const DEFAULT_BYTES: u64 = 1 << 30;
/// Left for the records of the pool and whatever else is on its filesystem, in bytes.
const SPARE_BYTES: u64 = 64 << 20;
/// The largest size that is understood: no filesystem here has larger files.
const MOST_BYTES: u64 = 1 << 54;

/// The size to make for somebody who needs at least `required` and takes at most `limit` bytes (0: not said), of something
/// that cannot have less than `least`.
pub(crate) fn size_for(required: u64, limit: u64, least: u64) -> Result<u64, PoolError> {
    if limit != 0 && required > limit {
        let why = format!("at least {required} and at most {limit} bytes are asked for, which nothing can be");
        return Err(PoolError::Invalid(why));
    }
    let wanted = match (required, limit) {
        (0, 0) => DEFAULT_BYTES,
        (0, limit) => DEFAULT_BYTES.min(limit / STEP_BYTES * STEP_BYTES).max(STEP_BYTES),
        (required, _) => required.min(MOST_BYTES).next_multiple_of(STEP_BYTES),
    };
    let wanted = wanted.max(least);
    if required > MOST_BYTES {
        return Err(PoolError::Size(format!("{required} bytes are more than any volume here can have")));
    }
    if limit != 0 && wanted > limit {
        let why = format!(
            "{wanted} bytes is the least that can be had for {required} bytes, and the limit is {limit}; sizes are multiples of {STEP_BYTES}"
        );
        return Err(PoolError::Size(why));
    }
    Ok(wanted)
}

impl Pool {
    /// Bytes that new volumes can have together: what is free, less what existing volumes may yet take, plus what the
    /// trash would give.
    ///
    /// # Errors
    /// The pool's directory cannot be read.
    pub fn room(&self) -> Result<u64, PoolError> {
        let free = self.kernel.space(&self.dir).map_err(failed("see the room of", &self.dir))?.free_bytes;
        let mut promised = SPARE_BYTES;
        for volume in self.volumes() {
            if volume.keeps_room() {
                promised += volume.bytes.saturating_sub(self.taken_bytes(&volume));
            }
        }
        Ok((free + self.trash_bytes()).saturating_sub(promised))
    }

    /// Makes sure that there is room for so many bytes more, by emptying the trash, oldest first, where that is needed.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<(), PoolError> {
        let room = self.room()?;
        if bytes > room {
            return Err(PoolError::NoRoom(format!(
                "{bytes} bytes are asked for and {room} are left in pool {}; delete volumes, enlarge its filesystem, or let \
                 volumes share room with parameter overcommit=true",
                self.dir.display()
            )));
        }
        self.empty_trash_for(bytes)
    }
}

#[test]
fn sizes() {
    let mib = STEP_BYTES;
    for (required, limit, want) in [
        (0, 0, Some(DEFAULT_BYTES)),
        (1, 0, Some(mib)),
        (mib, 0, Some(mib)),
        (mib + 1, 0, Some(2 * mib)),
        (mib + 1, 2 * mib, Some(2 * mib)),
        (0, 5 * mib + 7, Some(5 * mib)),
        (mib + 1, mib + 2, None),
        (2 * mib, mib, None),
        (0, 10, None),
        (u64::MAX, 0, None),
        (i64::MAX as u64, i64::MAX as u64, None),
    ] {
        assert_eq!(size_for(required, limit, 0).ok(), want, "{required} {limit}");
    }
    assert_eq!(size_for(mib, 0, 300 * mib).ok(), Some(300 * mib));
    assert_eq!(size_for(mib, 299 * mib, 300 * mib).ok(), None);
}
