//! A place in the shared history. A watch buffers nothing of its own: one that is too slow finds its history gone.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{Event, Revision, StoreError, state::Found, store::Shared};

/// Where a watch stands. `next` and `parked` change under the state's lock only.
pub(crate) struct Cursor {
    pub(crate) prefix: Box<str>,
    /// First revision not looked at yet.
    pub(crate) next: AtomicU64,
    /// Set once everything was looked at: the next publication moves `next`, and notifies if it matches.
    pub(crate) parked: AtomicBool,
    pub(crate) notify: Notify,
}

/// Every change under a prefix after a revision, in order (S3).
pub struct Watch<F> {
    shared: Arc<Shared<F>>,
    cursor: Arc<Cursor>,
}

impl<F> Watch<F> {
    pub(crate) fn new(shared: Arc<Shared<F>>, prefix: &str, from: Revision) -> Result<Self, StoreError> {
        let cursor = {
            let mut state = shared.state.write();
            let from = if from == 0 { state.revision } else { from };
            state.check(from)?;
            let cursor = Arc::new(Cursor {
                prefix: prefix.into(),
                next: AtomicU64::new(from + 1),
                parked: AtomicBool::new(false),
                notify: Notify::new(),
            });
            state.cursors.push(cursor.clone());
            cursor
        };
        Ok(Self { shared, cursor })
    }

    /// The next change. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when this watch fell behind the history that is kept, [`StoreError::Closed`] at the end.
    pub async fn next(&mut self) -> Result<Arc<Event<F>>, StoreError> {
        loop {
            {
                let state = self.shared.state.read();
                match state.advance(&self.cursor)? {
                    Found::Event(event) => return Ok(event),
                    Found::Parked if state.closed => return Err(StoreError::Closed),
                    Found::Parked => {}
                }
            }
            self.cursor.notify.notified().await;
        }
    }

    /// Everything up to this revision was yielded or is not under the prefix.
    pub fn progress(&self) -> Revision {
        self.cursor.next.load(Ordering::Relaxed) - 1
    }
}

impl<F> Drop for Watch<F> {
    fn drop(&mut self) {
        self.shared.state.write().cursors.retain(|c| !Arc::ptr_eq(c, &self.cursor));
    }
}

impl<F> fmt::Debug for Watch<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.cursor.prefix).field("progress", &self.progress()).finish()
    }
}
