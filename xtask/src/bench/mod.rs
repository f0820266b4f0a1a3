//! Times what a user feels, on the release binary. Measures only; asserts nothing about time.
//!
//! - `cargo xtask bench KUBECTL IMAGES_DIR [BINARY]`: starts, labs, memory, with a real kubectl and real containers.
//! - `cargo xtask bench claims [BINARY]`: binding of claims to volumes, by their number.
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
        [claims] if claims == "claims" => binary(None).and_then(|binary| claims::run(&binary)),
        [claims, path] if claims == "claims" => claims::run(Path::new(path)),
        [kubectl, images] => binary(None).and_then(|b| labs::run(b, kubectl.into(), Path::new(images))),
        [kubectl, images, path] => labs::run(path.into(), kubectl.into(), Path::new(images)),
        _ => {
            eprintln!(
                "usage: cargo xtask bench KUBECTL IMAGES_DIR [BINARY]   (root; without BINARY it builds the release)"
            );
            eprintln!("       cargo xtask bench claims [BINARY]");
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
    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }
    /// Resident memory in KiB.
    fn rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A number that differs between calls; good enough for a directory name.
fn fastrand() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos())
}
