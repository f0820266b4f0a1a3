//! Streams a log to a client: from a starting point, optionally on and on until the container has ended.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use tokio::sync::mpsc;

use super::{line, tail};

/// Bytes sent at once.
const CHUNK: usize = 32 * 1024;
/// Chunks under way; a slow client holds the reader back.
const QUEUE: usize = 4;
/// The longest time until the reader notices that the container ended or the client left.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the client asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `None`: both.
    pub stderr: Option<bool>,
}

/// Formats and filters raw lines.
struct Printer {
    options: Options,
    left: u64,
    /// By stream: the last line printed goes on.
    open: [bool; 2],
    out: BytesMut,
}

impl Printer {
    fn new(options: Options) -> Self {
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, left, open: [false; 2], out: BytesMut::new() }
    }

    /// False once the limit is reached.
    fn line(&mut self, raw: &[u8]) -> bool {
        let Some(line) = line::parse(raw) else { return true };
        if self.options.stderr.is_some_and(|wanted| wanted != line.stderr) {
            return true;
        }
        if self.options.since.is_some_and(|since| line.at().is_some_and(|at| at < since)) {
            return true;
        }
        let open = &mut self.open[usize::from(line.stderr)];
        let goes_on = std::mem::replace(open, line.partial);
        if self.options.timestamps && !goes_on {
            self.out.extend_from_slice(line.time);
            self.out.extend_from_slice(b" ");
        }
        self.out.extend_from_slice(line.message);
        if !line.partial {
            self.out.extend_from_slice(b"\n");
        }
        let full = self.out.len() as u64 >= self.left;
        if full {
            self.out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        !full
    }

    fn take(&mut self) -> Bytes {
        self.left = self.left.saturating_sub(self.out.len() as u64);
        self.out.split().freeze()
    }
}

/// Starts reading `log`; `alive` says whether its container may still write.
///
/// # Errors
/// The log cannot be read.
pub async fn stream(
    log: PathBuf,
    options: Options,
    alive: impl Fn() -> bool + Send + 'static,
) -> io::Result<mpsc::Receiver<Bytes>> {
    let (send, receive) = mpsc::channel(QUEUE);
    let files = tail::files(&log);
    if !options.follow && !files.iter().any(|f| f.exists()) {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("no log file {}", log.display())));
    }
    // A client that stops reading must not hold one of the runtime's threads for other work: this thread is its own.
    std::thread::Builder::new().name("log".into()).spawn(move || {
        let mut reader = Reader { log, printer: Printer::new(options), send };
        match reader.run(&alive) {
            Ok(()) | Err(Stop::Left | Stop::Full) => {}
            Err(Stop::Io(error)) => tracing::warn!(%error, log = %reader.log.display(), "reading a log broke off"),
        }
    })?;
    Ok(receive)
}

enum Stop {
    /// The client left.
    Left,
    /// The limit is reached.
    Full,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

struct Reader {
    log: PathBuf,
    printer: Printer,
    send: mpsc::Sender<Bytes>,
}

impl Reader {
    fn run(&mut self, alive: &dyn Fn() -> bool) -> Result<(), Stop> {
        let files = tail::files(&self.log);
        let (first, offset) = match self.printer.options.tail_lines {
            Some(lines) => tail::start_of_last(&files, lines)?,
            None => (0, 0),
        };
        let last = files.len().saturating_sub(1);
        for (i, path) in files.iter().enumerate().skip(first).filter(|(i, _)| *i < last) {
            if let Some(mut file) = open(path)? {
                file.seek(SeekFrom::Start(if i == first { offset } else { 0 }))?;
                self.drain(&mut BufReader::new(file), &mut Vec::new())?;
            }
        }
        self.live(if first == last { offset } else { 0 }, alive)
    }

    /// Reads the live file, and its successors after rotations.
    fn live(&mut self, offset: u64, alive: &dyn Fn() -> bool) -> Result<(), Stop> {
        let watch = if self.printer.options.follow { Watch::new(&self.log) } else { None };
        let mut rest = Vec::new();
        let mut current: Option<BufReader<File>> = None;
        let mut start = offset;
        loop {
            // Asked before the last reading, so that nothing written before the end is missed.
            let may_write = alive();
            if current.is_none()
                && let Some(mut file) = open(&self.log)?
            {
                file.seek(SeekFrom::Start(std::mem::take(&mut start)))?;
                current = Some(BufReader::new(file));
            }
            if let Some(file) = &mut current {
                self.drain(file, &mut rest)?;
                if replaced(file.get_ref(), &self.log)? {
                    self.drain(file, &mut rest)?;
                    current = None;
                    continue;
                }
            }
            if !self.printer.options.follow || !may_write {
                return Ok(());
            }
            if self.send.is_closed() {
                return Err(Stop::Left);
            }
            wait(watch.as_ref());
        }
    }

    /// Prints all complete lines; `rest` keeps what is not complete yet.
    fn drain(&mut self, file: &mut BufReader<File>, rest: &mut Vec<u8>) -> Result<(), Stop> {
        while file.read_until(b'\n', rest)? > 0 {
            if rest.last() != Some(&b'\n') {
                break;
            }
            rest.pop();
            let more = self.printer.line(rest);
            rest.clear();
            if !more {
                self.flush()?;
                return Err(Stop::Full);
            }
            if self.printer.out.len() >= CHUNK {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let chunk = self.printer.take();
        if chunk.is_empty() {
            return Ok(());
        }
        self.send.blocking_send(chunk).map_err(|_| Stop::Left)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// True if `path` is another file by now.
fn replaced(open: &File, path: &Path) -> io::Result<bool> {
    let own = open.metadata()?;
    match std::fs::metadata(path) {
        Ok(now) => Ok(now.ino() != own.ino() || now.dev() != own.dev()),
        // Between a rename and the new file, or all logs were removed: then the container is gone as well.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Tells when something in the log's directory is written.
struct Watch(OwnedFd);

impl Watch {
    /// `None`: the kernel has no watch to spare; the reader then looks every now and then.
    fn new(log: &Path) -> Option<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, log.parent()?, what).ok()?;
        Some(Self(fd))
    }
}

fn wait(watch: Option<&Watch>) {
    let Some(watch) = watch else {
        std::thread::sleep(std::time::Duration::from_millis(100));
        return;
    };
    let mut fds = [PollFd::new(&watch.0, PollFlags::IN)];
    if poll(&mut fds, Some(&IDLE)).is_ok_and(|n| n > 0) {
        let mut seen = [0u8; 4096];
        while rustix::io::read(&watch.0, &mut seen).is_ok_and(|n| n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    const LOG: &str = "2026-01-02T03:04:01Z stdout F one\n2026-01-02T03:04:02Z stderr F err\n\
                       2026-01-02T03:04:03Z stdout P pa\n2026-01-02T03:04:03Z stdout F rt\n\
                       2026-01-02T03:04:04Z stdout F last\n";

    async fn text(mut r: mpsc::Receiver<Bytes>) -> String {
        let mut all = Vec::new();
        while let Some(chunk) = r.recv().await {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).expect("text")
    }

    async fn read(options: Options) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        let (old, new) = LOG.split_at(LOG.find("2026-01-02T03:04:03Z").expect("there"));
        std::fs::write(dir.path().join("0.log.20260102-030402"), old).expect("written");
        std::fs::write(&log, new).expect("written");
        text(stream(log, options, || false).await.expect("readable")).await
    }

    #[tokio::test]
    async fn options_select_lines() {
        let o = Options::default;
        let at = |s: &str| Some(s.parse().expect("a time"));
        for (options, want) in [
            (o(), "one\nerr\npart\nlast\n"),
            (Options { tail_lines: Some(1), ..o() }, "last\n"),
            (Options { tail_lines: Some(0), ..o() }, ""),
            (Options { tail_lines: Some(4), ..o() }, "err\npart\nlast\n"),
            (Options { tail_lines: Some(99), ..o() }, "one\nerr\npart\nlast\n"),
            (Options { since: at("2026-01-02T03:04:04Z"), ..o() }, "last\n"),
            (Options { limit_bytes: Some(6), ..o() }, "one\ner"),
            (Options { limit_bytes: Some(0), ..o() }, ""),
            (Options { stderr: Some(true), ..o() }, "err\n"),
            (Options { stderr: Some(false), ..o() }, "one\npart\nlast\n"),
            (
                Options { timestamps: true, tail_lines: Some(3), ..o() },
                "2026-01-02T03:04:03Z part\n2026-01-02T03:04:04Z last\n",
            ),
            (Options { follow: true, tail_lines: Some(1), ..o() }, "last\n"),
        ] {
            assert_eq!(read(options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn follows_through_a_rotation_until_the_container_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-02T03:04:05Z stdout F {text}\n");
        std::fs::write(&log, line("one")).expect("written");
        let alive = Arc::new(AtomicBool::new(true));
        let flag = alive.clone();
        let options = Options { follow: true, ..Options::default() };
        let mut r = stream(log.clone(), options, move || flag.load(Ordering::SeqCst)).await.expect("readable");
        assert_eq!(r.recv().await.expect("a chunk"), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).expect("open");
        file.write_all(line("two").as_bytes()).expect("written");
        assert_eq!(r.recv().await.expect("a chunk"), "two\n");
        std::fs::rename(&log, dir.path().join("0.log.20260102-030405")).expect("renamed");
        file.write_all(line("three").as_bytes()).expect("written");
        std::fs::write(&log, line("four")).expect("written");
        let mut seen = String::new();
        while !seen.ends_with("four\n") {
            seen += std::str::from_utf8(&r.recv().await.expect("a chunk")).expect("text");
        }
        assert_eq!(seen, "three\nfour\n");
        alive.store(false, Ordering::SeqCst);
        assert_eq!(r.recv().await, None);
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_an_error() {
        assert!(stream("/nowhere/0.log".into(), Options::default(), || true).await.is_err());
    }
}
