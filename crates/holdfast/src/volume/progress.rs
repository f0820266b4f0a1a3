//! How much of an archive is through: a bar on a terminal, now and then a line elsewhere.
use std::{
    io::{self, IsTerminal, Read, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::about;

/// Between two lines where there is no terminal; something quick prints none.
const LINE_EVERY: Duration = Duration::from_secs(3);
const CHUNK_BYTES: usize = 256 << 10;

/// Shows on stderr.
pub struct Shown {
    what: String,
    /// In bytes; zero: not known.
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Shown {
    /// Begins to show `what` of about `total` bytes (0: not known).
    pub fn new(what: String, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
            let form = if total == 0 { "{msg} {bytes} {binary_bytes_per_sec}" } else { "{msg} {bytes:>10} {wide_bar}" };
            let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style).with_message(what.clone())
        });
        Self { what, total, done: 0, bar, last: Instant::now() }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if self.last.elapsed() >= LINE_EVERY => {
                self.last = Instant::now();
                let of = if self.total == 0 { String::new() } else { format!(" of about {}", about(self.total)) };
                eprintln!("{}: {}{of}", self.what, about(self.done));
            }
            None => {}
        }
    }

    /// Copies until the end, and shows it.
    pub fn copy(mut self, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
        let copied = self.copy_all(from, to);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        copied
    }

    fn copy_all(&mut self, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) => return to.flush(),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            to.write_all(&chunk[..read])?;
            self.add(read as u64);
        }
    }
}
