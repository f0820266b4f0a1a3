//! A container's output as lines in the format of the Container Runtime Interface:
//! `2026-11-22T18:00:00.123456789Z stdout F text`. `P` marks a piece of a line that goes on in the next entry.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::records;

/// Longest text of one entry, in bytes.
const LINE_MAX: usize = 16 << 10;
/// Size at which a file is put aside, in bytes.
const FILE_MAX: u64 = 10 << 20;
/// Files kept per container, the current one included.
const FILES_MAX: usize = 5;

/// Which of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One container's log.
pub(super) struct Log {
    /// Through `_dir`, so that it stays right when the directory is moved.
    path: PathBuf,
    _dir: File,
    file: Option<File>,
    size: u64,
    size_max: u64,
    /// The unfinished lines of both streams.
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens (and if need be makes) the file and its directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("not the path of a file"));
        };
        fs::create_dir_all(dir)?;
        let dir = File::open(dir)?;
        let path = records::short_path(&dir, &name.to_string_lossy());
        let pending = [Vec::new(), Vec::new()];
        let mut log = Self { path, _dir: dir, file: None, size: 0, size_max: FILE_MAX, pending };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the path anew, after somebody moved the file away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Adds output that was just read. What does not end a line waits for the rest of it.
    pub(super) fn write(&mut self, stream: Stream, now: Timestamp, mut bytes: &[u8]) {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let pending = &mut self.pending[stream as usize];
        while !bytes.is_empty() {
            let room = LINE_MAX - pending.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|b| *b == b'\n') {
                pending.extend_from_slice(&window[..end]);
                bytes = &bytes[end + 1..];
                entry(&mut out, stream, now, true, pending);
            } else {
                pending.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                // A line that ends exactly here is whole: wait for its newline if it is next.
                if pending.len() == LINE_MAX && bytes.first() != Some(&b'\n') {
                    entry(&mut out, stream, now, false, pending);
                } else if pending.len() == LINE_MAX {
                    bytes = &bytes[1..];
                    entry(&mut out, stream, now, true, pending);
                }
            }
        }
        self.append(&out, now);
    }

    /// Writes what is left of a last line without newline.
    pub(super) fn finish(&mut self, stream: Stream, now: Timestamp) {
        let pending = &mut self.pending[stream as usize];
        if !pending.is_empty() {
            let mut out = Vec::new();
            entry(&mut out, stream, now, false, pending);
            self.append(&out, now);
        }
    }

    fn append(&mut self, out: &[u8], now: Timestamp) {
        if out.is_empty() {
            return;
        }
        if self.size > 0
            && self.size + out.len() as u64 > self.size_max
            && let Err(error) = self.rotate(now)
        {
            eprintln!("rotate log {}: {error}", self.path.display());
        }
        // A full disk must not stop the container: the entry is lost, and said so in the shim's own log.
        if let Some(file) = &mut self.file {
            match file.write_all(out) {
                Ok(()) => self.size += out.len() as u64,
                Err(error) => eprintln!("write log {}: {error}", self.path.display()),
            }
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.path.with_file_name(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S%.6f")));
        fs::rename(&self.path, aside)?;
        self.reopen()?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let mut old: Vec<_> = fs::read_dir(dir)?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().strip_prefix(&name).is_some_and(|r| r.starts_with('.')))
            .map(|e| e.path())
            .collect();
        // Their names end in the time, so they sort by age.
        old.sort();
        for path in old.iter().rev().skip(FILES_MAX - 1) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Appends one entry and empties `text`.
fn entry(out: &mut Vec<u8>, stream: Stream, now: Timestamp, full: bool, text: &mut Vec<u8>) {
    let tag = if full { 'F' } else { 'P' };
    // Writing to memory cannot fail.
    let _ = write!(out, "{now:.9} {} {tag} ", stream.name());
    out.append(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 5).unwrap()
    }

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("pod/app/0.log")).unwrap();
        (dir, log)
    }

    fn text(log: &Log) -> String {
        fs::read_to_string(&log.path).unwrap()
    }

    #[test]
    fn lines_however_they_arrive() {
        let (_dir, mut log) = log();
        for piece in ["one\ntw", "o\n", "\nthree"] {
            log.write(Stream::Stdout, at(0), piece.as_bytes());
        }
        log.write(Stream::Stderr, at(1), b"oops\n");
        log.finish(Stream::Stdout, at(2));
        log.finish(Stream::Stderr, at(2));
        assert_eq!(
            text(&log),
            "1970-01-01T00:00:00.000000005Z stdout F one\n\
             1970-01-01T00:00:00.000000005Z stdout F two\n\
             1970-01-01T00:00:00.000000005Z stdout F \n\
             1970-01-01T00:00:01.000000005Z stderr F oops\n\
             1970-01-01T00:00:02.000000005Z stdout P three\n"
        );
    }

    #[test]
    fn long_lines_are_cut_and_join_again() {
        for len in [LINE_MAX - 1, LINE_MAX, LINE_MAX + 1, 3 * LINE_MAX] {
            let (_dir, mut log) = log();
            let mut line = vec![b'x'; len];
            line.push(b'\n');
            log.write(Stream::Stdout, at(0), &line);
            let text = text(&log);
            let mut joined = String::new();
            for entry in text.lines() {
                let mut fields = entry.splitn(4, ' ').skip(2);
                let tag = fields.next().unwrap();
                joined.push_str(fields.next().unwrap());
                if tag == "F" {
                    joined.push('\n');
                }
            }
            assert_eq!(joined.as_bytes(), line, "length {len}");
            assert_eq!(text.lines().count(), len.div_ceil(LINE_MAX), "length {len}");
        }
    }

    #[test]
    fn full_files_are_put_aside_and_old_ones_dropped() {
        let (_dir, mut log) = log();
        log.size_max = 200;
        for second in 0..40 {
            log.write(Stream::Stdout, at(second), format!("line {second}\n").as_bytes());
        }
        let files = fs::read_dir(log.path.parent().unwrap()).unwrap().count();
        assert_eq!(files, FILES_MAX);
        assert!(text(&log).contains("line 39"));
    }

    #[test]
    fn a_moved_directory_is_followed() {
        let (dir, mut log) = log();
        let (old, new) = (dir.path().join("pod"), dir.path().join("moved"));
        fs::rename(&old, &new).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, at(0), b"a\n");
        assert!(fs::read_to_string(new.join("app/0.log")).unwrap().ends_with("a\n"));
        assert!(!old.exists());
    }

    #[test]
    fn a_moved_file_is_followed_by_a_new_one() {
        let (_dir, mut log) = log();
        log.write(Stream::Stdout, at(0), b"a\n");
        fs::rename(&log.path, log.path.with_extension("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, at(0), b"b\n");
        assert!(text(&log).ends_with("b\n"));
        assert!(!text(&log).contains(" a\n"));
    }
}
