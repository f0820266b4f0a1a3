//! The demo's instance: a child process on a temporary data directory, and a client to it.
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{images, step};
use crate::{
    cli::DemoArgs,
    client::{self, Error, Resources, Session},
    errors::{Doing, said},
};

/// How long any single thing may take before the demo calls it a deviation.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    scratch: tempfile::TempDir,
    keep: bool,
    daemon: Option<Child>,
    pub session: Session,
    pub resources: Resources,
}

impl World {
    /// Starts the instance and provides the labs' images.
    pub async fn start(args: &DemoArgs) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return said("the demo runs real containers and needs root; start it with sudo");
        }
        let scratch =
            tempfile::Builder::new().prefix("holdfast-demo-").tempdir().doing(|| "make a directory".into())?;
        println!("data directory: {}", scratch.path().display());
        let data = scratch.path().join("data");
        let (daemon, session) = step("holdfast up", launch(&data)).await?;
        let resources = Resources::discover(&session).await?;
        let how = step("images", images::provide(&data, args.images.as_deref(), scratch.path())).await?;
        println!("  {how}");
        Ok(Self { scratch, keep: args.keep, daemon: Some(daemon), session, resources })
    }

    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Ends the daemon with a signal and waits for its end.
    pub async fn end_daemon(&mut self, signal: rustix::process::Signal) -> Result<(), Error> {
        let Some(mut child) = self.daemon.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(pid, signal).doing(|| "signal the daemon".into())?;
        }
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        ended.map_err(|_| "the daemon did not end after its signal")?.doing(|| "wait for the daemon".into())?;
        Ok(())
    }

    /// Starts the daemon again on the same data.
    pub async fn start_daemon(&mut self) -> Result<(), Error> {
        let (daemon, session) = launch(&self.data_dir()).await?;
        self.daemon = Some(daemon);
        self.session = session;
        Ok(())
    }

    pub async fn apply(&self, manifest: &str) -> Result<(), Error> {
        for object in client::manifests(manifest)? {
            client::apply::apply(&self.session, &self.resources, object).await?;
        }
        Ok(())
    }

    pub async fn get(&self, kind: &str, name: &str) -> Result<Value, Error> {
        self.session.get(&self.resources.find(kind)?.path(Some("default"), Some(name))).await
    }

    pub async fn delete(&self, kind: &str, name: &str) -> Result<(), Error> {
        // One second of grace: a shell that is a container's first process takes no notice of SIGTERM.
        let path = self.resources.find(kind)?.path(Some("default"), Some(name)) + "?gracePeriodSeconds=1";
        self.session.send("DELETE", &path, "application/json", None).await?;
        Ok(())
    }

    /// Waits until nothing of that name is there.
    pub async fn gone(&self, kind: &str, name: &str) -> Result<(), Error> {
        until(&format!("{kind}/{name} is gone"), || async {
            match self.get(kind, name).await {
                Err(error) if client::is_not_found(&error) => Ok(Some(())),
                Err(error) => Err(error),
                Ok(_) => Ok(None),
            }
        })
        .await
    }

    /// Waits until an object is as wanted and returns it.
    pub async fn wait(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        until(&format!("{kind}/{name} is {what}"), || async {
            let object = self.get(kind, name).await?;
            Ok(good(&object).then_some(object))
        })
        .await
    }

    /// Waits until a pod runs and all its containers are ready.
    pub async fn running(&self, pod: &str) -> Result<Value, Error> {
        let ready = |o: &Value| {
            let containers = o["status"]["containerStatuses"].as_array();
            containers.is_some_and(|list| !list.is_empty() && list.iter().all(|c| c["ready"] == true))
        };
        self.wait("pod", pod, "running and ready", ready).await
    }

    /// Runs this program's own client with the instance's kubeconfig.
    pub fn ours(&self, args: &[&str]) -> Result<Command, Error> {
        let mut command = Command::new(std::env::current_exe().doing(|| "find this program".into())?);
        command.args(args).arg("--kubeconfig").arg(base::Layout::new(self.data_dir()).admin_kubeconfig());
        Ok(command)
    }

    /// Runs a shell script in a container and returns what it printed.
    pub async fn shell(&self, pod: &str, container: &str, script: &str) -> Result<String, Error> {
        let mut command = self.ours(&["exec", pod, "-c", container])?;
        let output = command.args(["--", "sh", "-c", script]).output().await?;
        if !output.status.success() {
            return said(format!("{script:?} in pod {pod} failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes every pod, stops the daemon and removes the data directory (unless asked to keep it).
    pub async fn finish(mut self, failed: bool) -> Result<(), Error> {
        let pods = self.session.get("/api/v1/namespaces/default/pods").await.unwrap_or_default();
        for pod in pods["items"].as_array().into_iter().flatten().filter_map(|p| p["metadata"]["name"].as_str()) {
            // Already gone is as good.
            let _ = self.delete("pod", pod).await;
            self.gone("pod", pod).await?;
        }
        self.end_daemon(rustix::process::Signal::TERM).await?;
        if self.keep || failed {
            let path = self.scratch.keep();
            println!("kept: {}", path.display());
            return Ok(());
        }
        let path = self.scratch.path().to_owned();
        self.scratch.close().doing(|| format!("remove {}", path.display()))?;
        Ok(())
    }
}

/// Asks again until there is an answer; a deviation after [`PATIENCE`].
pub async fn until<T, F: Future<Output = Result<Option<T>, Error>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> Result<T, Error> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < PATIENCE {
        match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = last.map(|error| format!(" ({})", base::chain(error.as_ref()))).unwrap_or_default();
    said(format!("waited {} s, but not: {what}{why}", PATIENCE.as_secs()))
}

async fn launch(data: &Path) -> Result<(Child, Session), Error> {
    let mut child = Command::new(std::env::current_exe().doing(|| "find this program".into())?)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        // Lab 3 asks for a cloud's disk.
        .args(["--stand-in", "gce-pd"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(|| "start holdfast up".into())?;
    let out = child.stdout.take().ok_or("the daemon has no standard output")?;
    let mut lines = BufReader::new(out).lines();
    let first =
        tokio::time::timeout(PATIENCE, lines.next_line()).await.map_err(|_| "holdfast up did not become ready")??;
    if first.is_none() {
        return said("holdfast up ended before it was ready; its own message is above");
    }
    // Goes on reading, so that the daemon never meets a closed pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let client = client::connect(&base::Layout::new(data).admin_kubeconfig()).await?;
    Ok((child, Session { client, namespace: "default".into() }))
}
