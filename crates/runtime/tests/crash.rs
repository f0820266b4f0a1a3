//! Deaths of the daemon and of shims, and half-made things.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
mod support;

use std::{fs, time::Duration};

use runtime::{ContainerState, ExitReason, PodUid, Runtime};
use support::{POD, World, await_log, sandbox};

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn shim_pid(world: &World, id: &runtime::ContainerId) -> i32 {
    let text = fs::read(world.dir.path().join("runtime/containers").join(&id.0).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    state["shim"]["pid"].as_i64().unwrap() as i32
}

#[tokio::test]
async fn a_new_daemon_finds_everything() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let long = world.run(&world.spec("echo ready; trap 'exit 9' TERM; while :; do sleep 0.05; done")).await;
    await_log(&world, "ready").await;
    let mut short = world.spec("exit 2");
    short.name = "short".to_owned();
    let ended = world.run(&short).await;
    world.exit(&ended).await;
    let before = world.runtime.status(&uid).await.unwrap().unwrap();

    let new = world.reopened().await;
    let after = new.status(&uid).await.unwrap().unwrap();
    assert!(after.ready);
    assert_eq!(after.ips, before.ips);
    let states =
        |s: &runtime::SandboxStatus| s.containers.iter().map(|c| (c.id.clone(), c.state.clone())).collect::<Vec<_>>();
    assert_eq!(states(&after), states(&before));
    let mut events = new.events();
    // Nobody asks the runtime for it: only a container that is followed again is noticed to end.
    let ContainerState::Running { pid, .. } = world.state(&long).await else { panic!("not running") };
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    assert_eq!(event.container, Some(long.clone()));
    assert_eq!(world.exit(&long).await, (9, ExitReason::Error));
    world.finish().await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_along() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let id = world.run(&world.spec("exec sleep 1000")).await;
    let ContainerState::Running { pid, .. } = world.state(&id).await else { panic!("not running") };
    let mut events = world.runtime.events();
    kill(shim_pid(&world, &id));
    while world.state(&id).await != ContainerState::Unknown {
        tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    }
    for _ in 0..1000 {
        if !std::path::Path::new(&format!("/proc/{pid}/cwd/.")).exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!std::path::Path::new(&format!("/proc/{pid}/cwd/.")).exists(), "the program still runs");
    world.runtime.remove(&id).await.unwrap();
    assert!(world.runtime.status(&uid).await.unwrap().unwrap().containers.is_empty());
    world.finish().await;
}

#[tokio::test]
async fn another_boot_makes_everything_stale() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let id = world.run(&world.spec("true")).await;
    world.exit(&id).await;
    let mut live = world.spec("exec sleep 1000");
    live.attempt = 1;
    let live = world.run(&live).await;
    // As the records look after a reboot: same content, another boot's ID, no processes.
    kill(shim_pid(&world, &live));
    let root = world.dir.path().join("runtime");
    for file in
        [root.join("pods").join(POD).join("sandbox.json"), root.join("containers").join(&live.0).join("container.json")]
    {
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        record["boot"] = "another".into();
        fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    }
    let new = world.reopened().await;
    let status = new.status(&uid).await.unwrap().unwrap();
    assert!(!status.ready);
    let state = |i: &runtime::ContainerId| status.containers.iter().find(|c| c.id == *i).unwrap().state.clone();
    assert_eq!(state(&live), ContainerState::Unknown);
    assert!(matches!(state(&id), ContainerState::Exited { exit_code: 0, .. }));
    let fresh = new.run_sandbox(&sandbox()).await.unwrap();
    assert!(fresh.ready && fresh.containers.is_empty());
    world.finish().await;
}

#[tokio::test]
async fn half_made_things_go_away() {
    let world = World::new().await;
    let root = world.dir.path().join("runtime");
    // A record, but not all of the sandbox.
    let mut spec = sandbox();
    spec.sysctls.insert("net.no.such".to_owned(), "1".to_owned());
    world.runtime.run_sandbox(&spec).await.unwrap_err();
    assert!(!world.runtime.status(&spec.uid).await.unwrap().unwrap().ready);
    world.runtime.run_sandbox(&sandbox()).await.expect("completes it");
    // Directories whose record was never written, and one that is nobody's.
    fs::create_dir_all(root.join("containers").join("a".repeat(64)).join("upper")).unwrap();
    fs::create_dir_all(root.join("pods/half/shm")).unwrap();
    let new = world.reopened().await;
    assert_eq!(new.list().await.unwrap().len(), 1);
    assert_eq!(fs::read_dir(root.join("containers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.join("pods")).unwrap().count(), 1);
    new.remove_sandbox(&PodUid("never-there".to_owned())).await.unwrap();
    new.remove_sandbox(&PodUid("../escape".to_owned())).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn many_containers_at_once() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let specs: Vec<_> = (0..8)
        .map(|n| {
            let mut spec = world.spec(&format!("exit {n}"));
            spec.name = format!("c{n}");
            spec.log_path = world.dir.path().join(format!("logs/c{n}/0.log"));
            spec
        })
        .collect();
    let started = futures::future::join_all(specs.iter().map(|s| world.run(s))).await;
    for (code, id) in (0..).zip(&started) {
        assert_eq!(world.exit(id).await.0, code);
    }
    world.runtime.remove_sandbox(&uid).await.unwrap();
    assert!(world.runtime.list().await.unwrap().is_empty());
    world.finish().await;
}

/// Kills a daemon with all of its process group at many moments of making and removing pods; each time the next one finds
/// the first pod running and can remove whatever else was half-made.
#[tokio::test]
async fn a_daemon_may_be_killed_at_any_moment() {
    use std::{io::BufRead, os::unix::process::CommandExt};
    let world = World::new().await;
    for round in 0..8 {
        let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_runtime-test-shim"))
            .args(["daemon".as_ref(), world.dir.path().as_os_str()])
            .process_group(0)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let id = runtime::ContainerId(line.trim().to_owned());
        // A different moment each time.
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        daemon.wait().unwrap();

        let log = world.dir.path().join("logs/0.log");
        let size = || fs::metadata(&log).unwrap().len();
        let before = size();
        let new = world.reopened().await;
        let first = new.status(&PodUid("pod-0".to_owned())).await.unwrap().unwrap();
        assert!(first.ready, "round {round}");
        assert!(
            matches!(first.containers[0].state, ContainerState::Running { .. }),
            "round {round}: {:?}",
            first.containers
        );
        let out = new.exec_sync(&id, &["echo".into(), "hello".into()], Duration::from_secs(20)).await.unwrap();
        assert_eq!(out.output, b"hello\n");
        let mut waits = 0;
        while size() == before {
            waits += 1;
            assert!(waits < 1000, "round {round}: the log does not grow");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for pod in new.list().await.unwrap() {
            new.remove_sandbox(&pod.spec.uid).await.unwrap();
        }
        assert!(new.list().await.unwrap().is_empty());
        fs::remove_file(&log).unwrap();
    }
    world.finish().await;
}
