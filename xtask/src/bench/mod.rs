//! Times what a user feels, on the release binary. Measures only; asserts nothing about time.
//!
//! - `cargo xtask bench KUBECTL IMAGES_DIR [BINARY]`: starts, labs, memory, with a real kubectl and real containers.
//! - `cargo xtask bench claims [BINARY] [SECTION...] [MOST]`: binding of claims to volumes, by their number, and emptying
//!   volumes. Sections are `bulk`, `single`, `forms` and `recycle` (root); `MOST` bounds the number of objects.
//! - `cargo xtask bench volumes [DIR] [ROUNDS]`: durable writes into volumes of a pool in DIR against a plain directory
//!   there, and how long making, mounting, copying and deleting them takes (root).
mod claims;
mod http;
mod labs;
mod plot;

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a single thing may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(args: &[String]) -> ExitCode {
    let done = match args {
        [claims, words @ ..] if claims == "claims" => claims::run(words),
        [volumes, words @ ..] if volumes == "volumes" => volumes_of_a_pool(words),
        [kubectl, images] => binary(None).and_then(|b| labs::run(b, kubectl.into(), Path::new(images))),
        [kubectl, images, path] => labs::run(path.into(), kubectl.into(), Path::new(images)),
        _ => {
            eprintln!(
                "usage: cargo xtask bench KUBECTL IMAGES_DIR [BINARY]   (root; without BINARY it builds the release)"
            );
            eprintln!("       cargo xtask bench claims [BINARY] [SECTION...] [MOST]");
            eprintln!("       cargo xtask bench volumes [DIR] [ROUNDS]   (root)");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn volumes_of_a_pool(words: &[String]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "--package", "pool", "--bench", "volumes", "--"]).args(words);
    if command.current_dir(root()?).status()?.success() { Ok(()) } else { Err("the measurement failed".into()) }
}

fn root() -> Result<&'static Path> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask lies in the workspace")?)
}

fn binary(given: Option<PathBuf>) -> Result<PathBuf> {
    given.map_or_else(|| release(root()?), Ok)
}

fn release(root: &Path) -> Result<PathBuf> {
    let built =
        Command::new("cargo").args(["build", "--release", "--package", "holdfast"]).current_dir(root).status()?;
    if !built.success() {
        return Err("the release build failed".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/holdfast"))
}

/// What a daemon took so far.
struct Usage {
    /// Resident memory of its own, and of pages of files (mostly its program).
    own_kib: u64,
    file_kib: u64,
    cpu: Duration,
}

/// A running daemon on a directory of its own; itself and the directory go when it is dropped.
struct Daemon {
    dir: PathBuf,
    child: Child,
    ready_after: Duration,
}

impl Daemon {
    fn start(binary: &Path, more: &[&str]) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("holdfast-bench-{}-{:x}", std::process::id(), fastrand()));
        let started = Instant::now();
        let mut command = Command::new(binary);
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir).args(more).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        out.read_line(&mut line)?;
        let ready_after = started.elapsed();
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Ok(Self { dir, child, ready_after })
    }
    /// A directory of this daemon's name and `what`, which goes when it is dropped.
    fn beside(&self, what: &str) -> Result<Scratch> {
        let mut name = self.dir.clone().into_os_string();
        name.push(format!("-{what}"));
        let path = PathBuf::from(name);
        fs::create_dir(&path)?;
        Ok(Scratch { path })
    }
    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }
    /// Resident memory in KiB.
    fn rss_kib(&self) -> Result<u64> {
        let usage = self.usage()?;
        Ok(usage.own_kib + usage.file_kib)
    }
    fn usage(&self) -> Result<Usage> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let status = read("status")?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).ok_or("a figure of memory is missing")?;
            Ok(line.split_whitespace().next().ok_or("no figure")?.parse()?)
        };
        let stat = read("stat")?;
        // The name in brackets may hold anything.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).ok_or("no CPU time")?.parse()?) };
        Ok(Usage {
            own_kib: field("RssAnon:")?,
            file_kib: field("RssFile:")? + field("RssShmem:")?,
            // Clock ticks of `/proc` are a hundredth of a second on every Linux.
            cpu: Duration::from_millis((ticks(11)? + ticks(12)?) * 10),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A directory that goes when this is dropped.
struct Scratch {
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A number that differs between calls; good enough for a directory name.
fn fastrand() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos())
}
