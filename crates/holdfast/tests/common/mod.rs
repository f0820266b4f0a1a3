//! An instance of the real program on a temporary data directory, driven by a real kubectl.
#![allow(dead_code, reason = "each test binary uses a part")]
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// How long anything may take on a busy machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).expect("the crate lies two below the root")
}

/// Real kubectl binaries as `make deps` put them, newest last.
pub fn kubectls() -> Vec<PathBuf> {
    let dir =
        std::env::var_os("KUBECTLS").expect("KUBECTLS names the directory that `make deps` filled; run `make test`");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("read KUBECTLS").map(|e| e.expect("entry").path()).collect();
    found.sort();
    assert!(!found.is_empty(), "KUBECTLS is empty; run `make deps`");
    found
}

/// The kubectl of the API's own version.
pub fn kubectl() -> PathBuf {
    kubectls().into_iter().find(|k| k.ends_with("kubectl-1.36")).expect("kubectl 1.36 among KUBECTLS")
}

/// Where `make images` put the OCI archives.
pub fn images() -> PathBuf {
    std::env::var_os("HOLDFAST_TEST_IMAGES").expect("HOLDFAST_TEST_IMAGES names the archives; run `make test`").into()
}

/// A running `holdfast up`. Dropping it removes its pods, stops it and removes its data.
pub struct Instance {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    args: Vec<String>,
}

impl Instance {
    /// Starts an instance with the test images imported.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// [`Instance::start`] with more arguments.
    pub fn start_with(args: &[&str]) -> Self {
        let instance = Self::empty(args);
        for file in std::fs::read_dir(images()).expect("read images").map(|e| e.expect("entry").path()) {
            if file.extension().is_some_and(|e| e == "tar") {
                let out =
                    instance.ours(&["image", "import", &file.to_string_lossy(), "--data-dir", &instance.data_dir()]);
                assert!(out.status.success(), "import {}: {}", file.display(), text(&out.stderr));
            }
        }
        instance
    }

    /// Starts an instance on an empty data directory.
    pub fn empty(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("temporary directory");
        Self::within(dir, args)
    }

    /// Starts an instance on the directory `data` of `dir`.
    pub fn within(dir: tempfile::TempDir, args: &[&str]) -> Self {
        let args = args.iter().map(|a| a.to_string()).collect();
        let mut instance = Self { dir, child: None, args };
        instance.up();
        instance
    }

    pub fn data_dir(&self) -> String {
        self.dir.path().join("data").to_string_lossy().into_owned()
    }

    pub fn kubeconfig(&self) -> String {
        self.dir.path().join("data/admin.kubeconfig").to_string_lossy().into_owned()
    }

    /// What the daemon has logged, in all its lives.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn up(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir", &self.data_dir()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start holdfast up");
        let (log, said) = (self.log(), child.stderr.take().expect("piped"));
        std::thread::spawn(move || tee(said, &log));
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("read the ready line");
        assert!(line.contains("ready"), "instead of the ready line: {line:?}");
        // Goes on reading, so that the daemon never meets a closed pipe.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        self.child = Some(child);
    }

    /// Ends the daemon with a signal (`TERM`, `KILL`) and waits for it.
    pub fn end(&mut self, signal: &str) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().expect("run kill");
        assert!(sent.success());
        Some(child.wait().expect("wait for the daemon"))
    }

    /// Stops the daemon and starts it with other arguments.
    pub fn restart_with(&mut self, args: &[&str]) {
        self.end("TERM");
        self.args = args.iter().map(|a| a.to_string()).collect();
        self.up();
    }

    /// Runs this program with arguments.
    pub fn ours(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_holdfast")).args(args).output().expect("run holdfast")
    }

    /// A kubectl command against this instance.
    pub fn kubectl_command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let home = self.dir.path().join("home");
        command
            .args(["--kubeconfig", &self.kubeconfig()])
            .args(args)
            .env("HOME", home)
            .env("NO_PROXY", "*")
            .env_remove("KUBECONFIG");
        command
    }

    /// Runs kubectl 1.36; fails the test with its message if it fails. Returns what it printed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = self.kubectl_command(&kubectl(), args).stdin(Stdio::null()).output().expect("run kubectl");
        assert!(output.status.success(), "kubectl {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs kubectl with standard input, whatever comes of it.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Output {
        run_with(self.kubectl_command(&kubectl(), args), input)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.child.is_none() && !std::thread::panicking() {
            return;
        }
        if self.child.is_none() {
            self.up();
        }
        let kubectl = kubectl();
        let all = ["delete", "pods", "--all", "-A", "--grace-period=1", "--timeout=60s"];
        let _ = self.kubectl_command(&kubectl, &all).output();
        self.end("TERM");
    }
}

/// Shows what comes from a pipe, and keeps it in a file.
fn tee(from: impl Read, to: &Path) {
    let mut file = std::fs::File::options().create(true).append(true).open(to).expect("open the log");
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        eprintln!("{}", text(&line));
        // The directory may be gone with its test.
        let _ = file.write_all(&[&line[..], b"\n"].concat());
    }
}

/// Fails if a secret is where it must not be: in an object of the API other than a Secret (and those of `but`), in metrics,
/// in the daemon's log, in a process's arguments or environment, or on the disk outside of the API's store.
#[track_caller]
pub fn keeps_secrets(instance: &Instance, secrets: &[&str], but: &[&str]) {
    let kinds = instance.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| *kind != "secrets" && !but.contains(kind)).collect();
    assert!(kinds.len() > 20 && kinds.contains(&"events"), "{kinds:?}");
    let has = |said: &str| secrets.iter().find(|secret| said.contains(**secret)).copied();
    let none = None::<&str>;
    assert_eq!(has(&instance.kubectl(&["get", &kinds.join(","), "-A", "-o", "json"])), none, "an object tells it");
    assert_eq!(has(&instance.kubectl(&["get", "--raw", "/metrics"])), none, "the metrics tell it");
    assert_eq!(has(&text(&std::fs::read(instance.log()).expect("the daemon's log"))), none, "the log tells it");
    for process in std::fs::read_dir("/proc").expect("proc").flatten().map(|p| p.path()) {
        for file in ["cmdline", "environ"] {
            // It may have ended.
            let told = std::fs::read(process.join(file)).unwrap_or_default();
            assert_eq!(has(&text(&told)), none, "{file} of {} tells it", process.display());
        }
    }
    // What is mounted is in memory, or a volume's own affair, as large files are; layers are a registry's words.
    let data = instance.data_dir();
    let control = format!("{data}/control");
    std::fs::write(&control, secrets[0]).expect("write a file that must be found");
    let apart = ["store", "images/layers"].map(|name| format!("{data}/{name}"));
    let found = Command::new("find")
        .args([&data, "-xdev", "(", "-path", &apart[0], "-o", "-path", &apart[1], ")", "-prune"])
        .args(["-o", "-type", "f", "-size", "-4M", "-exec", "grep", "-lF", "--devices=skip"])
        .args(secrets.iter().flat_map(|secret| ["-e", secret]))
        .args(["{}", "+"])
        .output()
        .expect("run find");
    std::fs::remove_file(&control).expect("remove it");
    assert_eq!(text(&found.stdout), control + "\n", "files on the disk with a secret, besides one that has it");
}

/// Runs a command with standard input, whatever comes of it.
pub fn run_with(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the command");
    // One that ends without reading is its own affair.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("wait for the command")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asks again until there is an answer; fails the test after [`PATIENCE`].
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = ask() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {} s, but not: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for an event about `name` whose message contains `words`.
#[track_caller]
pub fn told(instance: &Instance, name: &str, words: &str) {
    let about = format!("involvedObject.name={name}");
    until(&format!("an event about {name}: {words}"), || {
        let all =
            instance.kubectl(&["get", "events", "--field-selector", &about, "-o", "jsonpath={.items[*].message}"]);
        all.contains(words).then_some(())
    });
}

/// Applies objects as text.
pub fn apply(instance: &Instance, objects: &str) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], objects);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

/// Waits until a pod is ready.
pub fn ready(instance: &Instance, name: &str) {
    instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

/// Runs a script in a pod: all that it says.
pub fn sh(instance: &Instance, pod: &str, script: &str) -> String {
    let out = instance.kubectl_with(&["exec", pod, "--", "sh", "-c", script], "");
    text(&out.stdout) + &text(&out.stderr)
}

/// Mount points at and below a directory.
pub fn mounted_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|p| Path::new(p).starts_with(dir)).map(str::to_owned).collect()
}
