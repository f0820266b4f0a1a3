//! The termination message of an ended container.
use std::{fs::File, io::Read, path::Path};

use super::{line, tail};

/// Longest message, in bytes.
const MESSAGE_BYTES: u64 = 4096;
/// Of the log, where that stands in for the message.
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;

/// What the container wrote to its message file, or the end of `log` if it wrote nothing. Empty if there is nothing.
pub fn read(file: &Path, log: Option<&Path>) -> String {
    // The end of the file, as upstream: the last words count.
    let own = last_bytes(file, MESSAGE_BYTES);
    let Some(log) = log.filter(|_| own.is_empty()) else { return own };
    let mut text = Vec::new();
    for raw in tail::last_lines(log, LOG_LINES).unwrap_or_default() {
        let Some(line) = line::parse(&raw) else { continue };
        text.extend_from_slice(line.message);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let from = text.len().saturating_sub(LOG_BYTES);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

fn last_bytes(path: &Path, most: u64) -> String {
    use std::io::{Seek, SeekFrom};
    let mut bytes = Vec::new();
    // The container may have put anything there, even a link: only a plain file is read.
    let plain = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    if let Some(mut file) = plain.then(|| File::open(path).ok()).flatten() {
        let size = file.metadata().map_or(0, |m| m.len());
        if file.seek(SeekFrom::Start(size.saturating_sub(most))).is_ok() {
            // What could be read is better than nothing.
            let _ = file.take(most).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn messages_and_their_stand_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, log) = (dir.path().join("m"), dir.path().join("0.log"));
    std::fs::write(&file, "").expect("written");
    let line = |text: &str| format!("2026-01-02T03:04:05Z stdout F {text}\n");
    std::fs::write(&log, (0..100).map(|i| line(&i.to_string())).collect::<String>()).expect("written");
    assert_eq!(read(&file, None), "");
    let text = read(&file, Some(&log));
    assert!(text.starts_with("20\n21\n") && text.ends_with("99\n"), "{text}");
    std::fs::write(&log, line(&"x".repeat(5000))).expect("written");
    assert_eq!(read(&file, Some(&log)).len(), LOG_BYTES);
    std::fs::write(&file, "bye").expect("written");
    assert_eq!(read(&file, Some(&log)), "bye");
    std::fs::write(&file, "y".repeat(5000)).expect("written");
    assert_eq!(read(&file, None).len(), 4096);
    assert_eq!(read(&dir.path().join("none"), None), "");
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("a link");
    assert_eq!(read(&dir.path().join("link"), None), "");
}
