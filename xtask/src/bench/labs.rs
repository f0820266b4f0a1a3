//! Starts, labs and memory, with a real kubectl and real containers. Prints a table for `docs/benchmarks.md`.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{Daemon, PATIENCE, Result, root};

const RUNS: usize = 7;

pub(super) fn run(binary: PathBuf, kubectl: PathBuf, images: &Path) -> Result<()> {
    let bench = Bench { binary, kubectl, labs: root()?.join("examples/labs") };
    println!("| measure | median | range | runs |\n|---|---|---|---|");
    bench.start()?;
    bench.idle()?;
    bench.labs(images)
}

struct Bench {
    binary: PathBuf,
    kubectl: PathBuf,
    labs: PathBuf,
}

/// A daemon with a node, whose pods go before it does.
struct Node {
    kubectl: PathBuf,
    daemon: Daemon,
}

impl Node {
    fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.daemon.kubeconfig()).args(args).env("HOME", &self.daemon.dir);
        command
    }

    fn apply(&self, objects: &str) -> Result<Child> {
        let mut apply = self.kubectl(&["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        apply.stdin.take().ok_or("no input")?.write_all(objects.as_bytes())?;
        Ok(apply)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = ["delete", "pods", "--all", "--grace-period=1", "--timeout=20s"];
        let _ = self.kubectl(&pods).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Lines of a child's output with the moment each arrived.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Lines {
    fn of(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            out.lines().map_while(std::result::Result::ok).try_for_each(|l| send.send((Instant::now(), l)))
        });
        Ok(Self { child, lines })
    }
    fn when(&self, good: impl Fn(&str) -> bool) -> Result<(Instant, String)> {
        loop {
            let (at, line) = self.lines.recv_timeout(PATIENCE)?;
            if good(&line) {
                return Ok((at, line));
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bench {
    fn daemon(&self) -> Result<Node> {
        Ok(Node { kubectl: self.kubectl.clone(), daemon: Daemon::start(&self.binary, &[])? })
    }

    fn start(&self) -> Result<()> {
        let times = (0..RUNS).map(|_| Ok(self.daemon()?.daemon.ready_after)).collect::<Result<Vec<_>>>()?;
        row("`up` to ready, empty data directory", &times);
        Ok(())
    }

    fn idle(&self) -> Result<()> {
        let daemon = self.daemon()?;
        std::thread::sleep(Duration::from_secs(10));
        println!(
            "| whole daemon idle for 10 s, one node | {:.1} MiB RSS | | 1 |",
            daemon.daemon.rss_kib()? as f64 / 1024.0
        );
        Ok(())
    }

    fn labs(&self, images: &Path) -> Result<()> {
        let daemon = self.daemon()?;
        for file in fs::read_dir(images)?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "tar")) {
            let mut import = Command::new(&self.binary);
            import.args(["image", "import"]).arg(file.path()).arg("--data-dir").arg(&daemon.daemon.dir);
            if !import.stdout(Stdio::null()).status()?.success() {
                return Err(format!("import of {} failed", file.path().display()).into());
            }
        }
        let (mut kubectl, mut running, mut page, mut gone, mut live) = (vec![], vec![], vec![], vec![], vec![]);
        for _ in 0..RUNS {
            let started = Instant::now();
            daemon.kubectl(&["version", "--client"]).stdout(Stdio::null()).status()?;
            kubectl.push(started.elapsed());
            let (up, first, end) = self.fortune(&daemon)?;
            running.push(up);
            page.push(first);
            gone.push(end);
            live.push(self.config_map(&daemon)?);
        }
        row("kubectl alone (`version --client`)", &kubectl);
        row("lab 1: `kubectl apply` to both containers Running", &running);
        row("lab 1: apply to first page through port-forward", &page);
        row("pod delete with grace 0 to gone (`kubectl delete --grace-period=0 --force`, kubectl included)", &gone);
        row("ConfigMap change (`kubectl patch`, kubectl included) to the mounted file", &live);
        drop(daemon.kubectl(&["delete", "pods", "--all"]).stdout(Stdio::null()).status());
        let fresh = (0..RUNS).map(|_| self.claims(&daemon, 1)).collect::<Result<Vec<_>>>()?;
        row("one claim and its pod, `kubectl apply` to Running on a volume made for it", &fresh);
        row("100 claims and their pods, the same", &[self.claims(&daemon, 100)?]);
        for (kind, shown) in
            [("emptyDir", "`emptyDir`"), ("configMap", "`configMap`"), ("claim", "claims without a class")]
        {
            let times = (0..RUNS).map(|_| self.together(&daemon, 100, kind)).collect::<Result<Vec<_>>>()?;
            row(&format!("100 volumes in one pod, {shown}: `kubectl apply` of the pod to Running"), &times);
        }
        println!("| whole daemon after the labs | {:.1} MiB RSS | | 1 |", daemon.daemon.rss_kib()? as f64 / 1024.0);
        Ok(())
    }

    /// Times lab 1: apply to Running, apply to first page, delete to gone.
    fn fortune(&self, daemon: &Node) -> Result<(Duration, Duration, Duration)> {
        let shown = "jsonpath={.metadata.name} {.status.containerStatuses[*].state.running.startedAt}{\"\\n\"}";
        let watch = Lines::of(daemon.kubectl(&["get", "pods", "--watch-only", "-o", shown]))?;
        let deleted =
            Lines::of(daemon.kubectl(&["get", "pods", "--watch-only", "--output-watch-events", "--no-headers"]))?;
        std::thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        let manifest = self.labs.join("1-fortune.yaml").to_string_lossy().into_owned();
        daemon.kubectl(&["apply", "-f", &manifest]).stdout(Stdio::null()).status()?;
        let up = watch.when(|line| line.split_whitespace().count() >= 3)?.0 - started;
        let forward = Lines::of(daemon.kubectl(&["port-forward", "fortune", ":80"]))?;
        let (_, line) = forward.when(|line| line.contains("127.0.0.1:"))?;
        let port = line.split("127.0.0.1:").nth(1).and_then(|r| r.split(' ').next()).ok_or("no port")?.parse()?;
        while !fetch(port).is_ok_and(|answer| answer.contains(" 200 ")) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let first = started.elapsed();
        let started = Instant::now();
        let args = ["delete", "pod", "fortune", "--grace-period=0", "--force", "--wait=false"];
        daemon.kubectl(&args).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        let end = deleted.when(|line| line.starts_with("DELETED"))?.0 - started;
        Ok((up, first, end))
    }

    /// Times claims without a class, each with a pod of its own, from apply until the last pod runs. Deletes them.
    fn claims(&self, daemon: &Node, count: usize) -> Result<Duration> {
        let objects: String = (0..count)
            .map(|i| {
                let name = format!("d{i}");
                let volumes = [("v".to_owned(), format!("\"persistentVolumeClaim\":{{\"claimName\":\"{name}\"}}"))];
                claim(&name) + &pod(&name, &volumes)
            })
            .collect();
        self.until_running(daemon, &objects, count)
    }

    /// Times one pod with this many volumes of a kind, from apply until it runs. Deletes it.
    fn together(&self, daemon: &Node, count: usize, kind: &str) -> Result<Duration> {
        let names = (0..count).map(|i| format!("v{i}"));
        let volumes: Vec<_> = match kind {
            "emptyDir" => names.map(|n| (n, "\"emptyDir\":{}".to_owned())).collect(),
            "configMap" => names.map(|n| (n.clone(), format!("\"configMap\":{{\"name\":\"{n}\"}}"))).collect(),
            _ => names.map(|n| (n.clone(), format!("\"persistentVolumeClaim\":{{\"claimName\":\"{n}\"}}"))).collect(),
        };
        let mut objects = String::new();
        for (name, _) in &volumes {
            match kind {
                "emptyDir" => {}
                "configMap" => {
                    objects += &format!(
                        "---\n{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}},\"data\":{{\"a\":\"b\"}}}}\n"
                    )
                }
                _ => objects += &claim(name),
            }
        }
        // What the pod needs is there before: it is the volumes that are timed.
        if !objects.is_empty() {
            daemon.apply(&objects)?.wait()?;
        }
        self.until_running(daemon, &pod("many", &volumes), 1)
    }

    fn until_running(&self, daemon: &Node, objects: &str, count: usize) -> Result<Duration> {
        let shown = "jsonpath={.metadata.name} {.status.containerStatuses[*].state.running.startedAt}{\"\\n\"}";
        let watch = Lines::of(daemon.kubectl(&["get", "pods", "--watch-only", "-o", shown]))?;
        std::thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        let mut apply = daemon.apply(objects)?;
        let mut running = std::collections::BTreeSet::new();
        let mut last = started;
        while running.len() < count {
            let (at, line) = watch.when(|line| line.split_whitespace().count() >= 2)?;
            running.insert(line.split_whitespace().next().unwrap_or_default().to_owned());
            last = at;
        }
        apply.wait()?;
        daemon.kubectl(&["delete", "pods,pvc", "--all"]).stdout(Stdio::null()).status()?;
        Ok(last - started)
    }

    /// Times a change of a ConfigMap until the file that a pod sees has changed.
    fn config_map(&self, daemon: &Node) -> Result<Duration> {
        let objects = "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"m\"},\"data\":{\"a\":\"old\"}}\n---\n\
            {\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"live\"},\"spec\":{\"terminationGracePeriodSeconds\":0,\
            \"volumes\":[{\"name\":\"v\",\"configMap\":{\"name\":\"m\"}}],\"containers\":[{\"name\":\"c\",\"image\":\"luksa/fortune\",\
            \"imagePullPolicy\":\"IfNotPresent\",\"command\":[\"sleep\",\"1000\"],\"volumeMounts\":[{\"name\":\"v\",\"mountPath\":\"/v\"}]}]}}";
        daemon.apply(objects)?.wait()?;
        daemon
            .kubectl(&["wait", "--for=condition=Ready", "pod/live", "--timeout=60s"])
            .stdout(Stdio::null())
            .status()?;
        let uid = daemon.kubectl(&["get", "pod", "live", "-o", "jsonpath={.metadata.uid}"]).output()?;
        let pod = daemon.daemon.dir.join("kubelet/pods").join(String::from_utf8(uid.stdout)?);
        let mut volumes = fs::read_dir(pod.join("volumes"))?.flatten().map(|e| e.path().join("v/data/a"));
        let file = volumes.find(|f| f.exists()).ok_or("the mounted file is not there")?;
        let started = Instant::now();
        let mut patch = daemon
            .kubectl(&["patch", "configmap", "m", "-p", "{\"data\":{\"a\":\"new\"}}"])
            .stdout(Stdio::null())
            .spawn()?;
        while fs::read(&file)? != b"new" {
            if started.elapsed() > PATIENCE {
                return Err("the file did not change".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let changed = started.elapsed();
        patch.wait()?;
        daemon.kubectl(&["delete", "pod/live", "configmap/m"]).stdout(Stdio::null()).status()?;
        Ok(changed)
    }
}

fn claim(name: &str) -> String {
    format!(
        "---\n{{\"apiVersion\":\"v1\",\"kind\":\"PersistentVolumeClaim\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\
         \"accessModes\":[\"ReadWriteOnce\"],\"resources\":{{\"requests\":{{\"storage\":\"64Mi\"}}}}}}}}\n"
    )
}

/// A pod that mounts volumes, each given by its name and source.
fn pod(name: &str, volumes: &[(String, String)]) -> String {
    let mounts: Vec<_> =
        volumes.iter().map(|(v, _)| format!("{{\"name\":\"{v}\",\"mountPath\":\"/mnt/{v}\"}}")).collect();
    let volumes: Vec<_> = volumes.iter().map(|(v, source)| format!("{{\"name\":\"{v}\",{source}}}")).collect();
    format!(
        "---\n{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\
         \"terminationGracePeriodSeconds\":0,\"volumes\":[{}],\"containers\":[{{\"name\":\"c\",\"image\":\"luksa/fortune\",\
         \"imagePullPolicy\":\"IfNotPresent\",\"command\":[\"sleep\",\"1000\"],\"volumeMounts\":[{}]}}]}}}}\n",
        volumes.join(","),
        mounts.join(",")
    )
}

fn fetch(port: u16) -> Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

fn row(name: &str, times: &[Duration]) {
    let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
    ms.sort_by(f64::total_cmp);
    println!("| {name} | {:.0} ms | {:.0}–{:.0} | {} |", ms[ms.len() / 2], ms[0], ms[ms.len() - 1], ms.len());
}
