//! Printing an error with its causes, once.
use std::{error::Error, fmt::Write};

/// `error: cause: cause of the cause`. Errors here never repeat their source in `Display`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

#[test]
fn prints_each_cause_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("read page")]
    struct Outer(#[source] std::io::Error);
    let e = Outer(std::io::Error::other("disk on fire"));
    assert_eq!(chain(&e), "read page: disk on fire");
}
