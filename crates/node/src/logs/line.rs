//! One line of a log file.
use jiff::Timestamp;

/// A parsed line. A message without `F` tag goes on in the next line of the same stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written, for `timestamps=true`.
    pub time: &'a [u8],
    pub stderr: bool,
    pub partial: bool,
    pub message: &'a [u8],
}

impl Line<'_> {
    /// When it was written.
    pub fn at(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

/// Reads one line, without its line feed. `None`: not a log line.
pub fn parse(raw: &[u8]) -> Option<Line<'_>> {
    let mut parts = raw.splitn(4, |b| *b == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let message = parts.next().unwrap_or_default();
    let stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Line { time, stderr, partial, message })
}

#[test]
fn lines() {
    let l = parse(b"2026-01-02T03:04:05.000000006Z stderr F two words ").expect("a line");
    assert_eq!((l.stderr, l.partial, l.message), (true, false, b"two words ".as_slice()));
    assert!(l.at().is_some());
    assert!(parse(b"2026-01-02T03:04:05Z stdout P x").expect("a line").partial);
    assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F ").expect("a line").message, b"");
    assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F").expect("a line").message, b"");
    assert_eq!(parse(b"2026-01-02T03:04:05Z other F x"), None);
    assert_eq!(parse(b"nonsense"), None);
}
