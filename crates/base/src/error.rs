//! Printing an error with its causes, once.
use std::{error::Error, fmt::Write};

/// `error: cause: cause of the cause`. Errors here never repeat their source in `Display`. The kernel's words come without
/// Rust's ` (os error 2)`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    without_numbers(&text)
}

fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<i32>().is_ok() => plain.push_str(rest),
            _ => plain.extend([" (os error ", part]),
        }
    }
    plain
}

#[test]
fn prints_each_cause_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("read page")]
    struct Outer(#[source] std::io::Error);
    let e = Outer(std::io::Error::other("disk on fire"));
    assert_eq!(chain(&e), "read page: disk on fire");
    let e = Outer(std::io::Error::from_raw_os_error(2));
    assert_eq!(chain(&e), "read page: No such file or directory");
    assert_eq!(without_numbers("a (os error 2) and b (os error 3): c (os error x)"), "a and b: c (os error x)");
}
