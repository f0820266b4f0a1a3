//! Exponential back-off as a value: the caller owns the clock and the waiting.
use std::time::Duration;

/// Doubles from `first` up to `cap`; `reset` starts again.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// A back-off whose first delay is `first` and whose delays never exceed `cap`.
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// Returns the delay to wait now and doubles the one after it.
    pub fn delay(&mut self) -> Duration {
        let now = self.next;
        self.next = (self.next * 2).min(self.cap);
        now
    }

    /// Forgets earlier failures.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[test]
fn doubles_to_the_cap_and_resets() {
    let s = Duration::from_secs;
    let mut b = Backoff::new(s(10), s(35));
    assert_eq!([b.delay(), b.delay(), b.delay(), b.delay()], [s(10), s(20), s(35), s(35)]);
    b.reset();
    assert_eq!(b.delay(), s(10));
}
