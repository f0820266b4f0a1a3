//! The labs, step by step, with what each must show.
use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{
    step,
    world::{World, until},
};
use crate::{client::Error, errors::said};

const THREE_CONTAINERS: &str = include_str!("../../../../examples/labs/0-three-containers.yaml");
const FORTUNE: &str = include_str!("../../../../examples/labs/1-fortune.yaml");
const VOLUME: &str = include_str!("../../../../examples/labs/2-pv.yaml");
const CLAIM: &str = include_str!("../../../../examples/labs/2-pvc.yaml");
const POD: &str = include_str!("../../../../examples/labs/2-pod.yaml");
const DYNAMIC: &str = include_str!("../../../../examples/labs/3-dynamic.yaml");

pub async fn all(world: &mut World) -> Result<(), Error> {
    println!("lab 0: three containers are only useful once they share storage");
    three_containers(world).await?;
    println!("lab 1: two containers share an emptyDir");
    fortune(world).await?;
    println!("lab 2: a claim keeps its data");
    claim(world).await?;
    println!("lab 3: a claim alone is enough");
    dynamic(world).await
}

async fn three_containers(world: &World) -> Result<(), Error> {
    step("apply 0-three-containers.yaml, all containers ready", async {
        world.apply(THREE_CONTAINERS).await?;
        world.running("three-containers").await
    })
    .await?;
    step("content-agent's page is served by web-server, log-rotator reads its access log", async {
        until("the page is served", || async {
            let page = get_page(world, "three-containers", 80).await?;
            Ok((!page.trim().is_empty()).then_some(()))
        })
        .await?;
        until("log-rotator prints the access log", || async {
            let log = output(world, &["logs", "three-containers", "-c", "log-rotator"]).await?;
            Ok(log.contains("GET / ").then_some(()))
        })
        .await
    })
    .await?;
    step("delete the pod", remove_pod(world, "three-containers")).await
}

async fn fortune(world: &World) -> Result<(), Error> {
    step("apply 1-fortune.yaml, both containers ready", async {
        world.apply(FORTUNE).await?;
        world.running("fortune").await
    })
    .await?;
    step("port-forward: a fortune, and a different one within 15 s", async {
        let mut seen = BTreeSet::new();
        for _ in 0..150 {
            let page = get_page(world, "fortune", 80).await.unwrap_or_default();
            if !page.trim().is_empty() {
                seen.insert(page);
            }
            if seen.len() > 1 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        said(format!("only {} different pages in 15 s", seen.len()))
    })
    .await?;
    step("kill the generator from outside: it restarts, the volume's content stays", async {
        let before = world.shell("fortune", "web-server", "cat /usr/share/nginx/html/index.html").await?;
        let pod = world.get("pod", "fortune").await?;
        let id = container_id(&pod, "html-generator")?;
        kill_container(&id)?;
        let restarted = |o: &Value| status_of(o, "html-generator")["restartCount"].as_i64() > Some(0);
        world.wait("pod", "fortune", "restarted", restarted).await?;
        let after = world.shell("fortune", "web-server", "cat /usr/share/nginx/html/index.html").await?;
        if before.is_empty() || after.is_empty() { said("the page was lost with its container") } else { Ok(()) }
    })
    .await?;
    step("delete the pod", remove_pod(world, "fortune")).await
}

async fn claim(world: &mut World) -> Result<(), Error> {
    let host_dir = world.scratch().join("mnt-data");
    println!("  (the volume's hostPath /mnt/data is {} here, so that nothing of yours is touched)", host_dir.display());
    let volume = VOLUME.replace("/mnt/data", &host_dir.to_string_lossy());
    step("apply 2-pv.yaml: Available", async {
        world.apply(&volume).await?;
        world.wait("pv", "test-pv-volume", "Available", |o| o["status"]["phase"] == "Available").await
    })
    .await?;
    step("apply 2-pvc.yaml: both Bound", async {
        world.apply(CLAIM).await?;
        world.wait("pvc", "test-pv-claim", "Bound", |o| o["status"]["phase"] == "Bound").await?;
        let to_claim = |o: &Value| o["status"]["phase"] == "Bound" && o["spec"]["claimRef"]["name"] == "test-pv-claim";
        world.wait("pv", "test-pv-volume", "Bound to its claim", to_claim).await
    })
    .await?;
    step("apply 2-pod.yaml, write index.html through exec, read it with curl", async {
        world.apply(POD).await?;
        world.running("test-pv-pod").await?;
        world
            .shell(
                "test-pv-pod",
                "test-pv-container",
                "echo 'Hello from Kubernetes storage' > /usr/share/nginx/html/index.html",
            )
            .await?;
        expect_page(world).await
    })
    .await?;
    step("delete the pod, make it again: the page is there", async {
        remove_pod(world, "test-pv-pod").await?;
        world.apply(POD).await?;
        world.running("test-pv-pod").await?;
        expect_page(world).await
    })
    .await?;
    let before = container_id(&world.get("pod", "test-pv-pod").await?, "test-pv-container")?;
    for (name, signal) in [("restart", rustix::process::Signal::TERM), ("kill -9", rustix::process::Signal::KILL)] {
        let text = format!("{name} the daemon: the page and the running container are still there");
        world.end_daemon(signal).await?;
        world.start_daemon().await?;
        step(&text, async {
            world.running("test-pv-pod").await?;
            expect_page(world).await?;
            let pod = world.get("pod", "test-pv-pod").await?;
            match container_id(&pod, "test-pv-container")? == before {
                true => Ok(()),
                false => said("the container was replaced instead of adopted"),
            }
        })
        .await?;
    }
    step("delete the claim: the volume is Released, its data kept", async {
        remove_pod(world, "test-pv-pod").await?;
        world.delete("pvc", "test-pv-claim").await?;
        world.gone("pvc", "test-pv-claim").await?;
        world.wait("pv", "test-pv-volume", "Released", |o| o["status"]["phase"] == "Released").await?;
        let kept = std::fs::read_to_string(host_dir.join("index.html"))?;
        if kept.contains("Hello from Kubernetes storage") { Ok(()) } else { said("the page is not what was written") }
    })
    .await
}

/// The daemon stands in for the cloud whose disks the class asks for.
async fn dynamic(world: &World) -> Result<(), Error> {
    let pod = POD.replace("test-pv-pod", "mongodb").replace("test-pv-claim", "mongodb-pvc");
    let mut volume = String::new();
    step("apply 3-dynamic.yaml: a disk is made, and both are Bound", async {
        world.apply(DYNAMIC).await?;
        world.wait("pvc", "mongodb-pvc", "Bound", |o| o["status"]["phase"] == "Bound").await?;
        let claim = world.get("pvc", "mongodb-pvc").await?;
        claim["spec"]["volumeName"].as_str().unwrap_or_default().clone_into(&mut volume);
        world.wait("pv", &volume, "Bound", |o| o["status"]["phase"] == "Bound").await
    })
    .await?;
    step("a pod writes to it, the next pod reads that", async {
        let file = "/usr/share/nginx/html/data";
        world.apply(&pod).await?;
        world.running("mongodb").await?;
        world.shell("mongodb", "test-pv-container", &format!("echo kept > {file}")).await?;
        remove_pod(world, "mongodb").await?;
        world.apply(&pod).await?;
        world.running("mongodb").await?;
        let found = world.shell("mongodb", "test-pv-container", &format!("cat {file}")).await?;
        if found.trim() == "kept" { Ok(()) } else { said(format!("{file} says {found:?}")) }
    })
    .await?;
    step("delete the claim: volume and disk go with it", async {
        remove_pod(world, "mongodb").await?;
        world.delete("pvc", "mongodb-pvc").await?;
        world.gone("pvc", "mongodb-pvc").await?;
        world.gone("pv", &volume).await
    })
    .await
}

/// The page as the notes look at it: with curl inside the container.
async fn expect_page(world: &World) -> Result<(), Error> {
    let page = world.shell("test-pv-pod", "test-pv-container", "curl -sS localhost").await?;
    match page.contains("Hello from Kubernetes storage") {
        true => Ok(()),
        false => said(format!("the web server answered {page:?}")),
    }
}

async fn remove_pod(world: &World, name: &str) -> Result<(), Error> {
    world.delete("pod", name).await?;
    world.gone("pod", name).await
}

fn status_of<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    all.into_iter().find(|c| c["name"] == container).unwrap_or(&Value::Null)
}

fn container_id(pod: &Value, container: &str) -> Result<String, Error> {
    let id = status_of(pod, container)["containerID"].as_str().and_then(|id| id.rsplit('/').next());
    id.map(str::to_owned).ok_or_else(|| format!("container {container} has no id").into())
}

/// Kills every process of a container, found by its cgroup: what the out-of-memory killer or a person would do.
fn kill_container(id: &str) -> Result<(), Error> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroups.contains(id)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            killed += 1;
        }
    }
    if killed > 0 { Ok(()) } else { said(format!("no process of container {id} found")) }
}

/// `GET /` of a pod's port, through `holdfast port-forward`.
async fn get_page(world: &World, pod: &str, port: u16) -> Result<String, Error> {
    let mut forward = world.ours(&["port-forward", pod, &format!(":{port}")])?;
    let mut child = forward.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let out = child.stdout.take().ok_or("port-forward has no standard output")?;
    let line = BufReader::new(out).lines().next_line().await?.unwrap_or_default();
    let Some(address) = line.split_whitespace().nth(2) else { return said(format!("port-forward said {line:?}")) };
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), connection.read_to_string(&mut answer))
        .await
        .map_err(|_| "no answer in 10 s")??;
    child.kill().await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => said(format!("the web server answered {:?}", answer.lines().next().unwrap_or_default())),
    }
}

async fn output(world: &World, args: &[&str]) -> Result<String, Error> {
    let output = world.ours(args)?.output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    said(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
