//! The life of real containers, as root.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
mod support;

use std::time::Duration;

use runtime::{ContainerState, ExitReason, Runtime, RuntimeError};
use support::{World, await_log};

#[tokio::test]
async fn a_container_runs_and_ends() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let spec = world.spec("echo hello; cat /etc/layer; echo oops >&2; exit 3");
    let id = world.runtime.create(&uid, &spec).await.unwrap();
    assert_eq!(world.state(&id).await, ContainerState::Created);
    assert_eq!(world.runtime.create(&uid, &spec).await.unwrap(), id, "the same call again");
    world.runtime.start(&id).await.unwrap();
    assert_eq!(world.exit(&id).await, (3, ExitReason::Error));
    world.runtime.start(&id).await.expect("starting twice is no error");
    let log = world.log();
    assert!(log.contains("hello\n") && log.contains("top\n") && log.contains("oops\n"), "{log}");
    world.runtime.stop(&id, Duration::from_secs(1)).await.unwrap();
    world.runtime.remove(&id).await.unwrap();
    world.runtime.remove(&id).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn programs_that_cannot_run_say_why() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let cases = [
        ("no-such", r#"exec: "no-such": executable file not found in $PATH: unknown"#),
        ("/no/such", r#"exec: "/no/such": stat /no/such: no such file or directory: unknown"#),
        ("/etc/not-a-program", r#"exec: "/etc/not-a-program": permission denied: unknown"#),
        ("/etc", r#"exec: "/etc": is a directory: unknown"#),
        // What is there at that moment is the daemon's own program.
        ("/proc/self/exe", r#"exec: "/proc/self/exe": permission denied: unknown"#),
    ];
    for (attempt, (program, text)) in (0..).zip(cases) {
        let mut spec = world.argv(&[program]);
        spec.attempt = attempt;
        let id = world.runtime.create(&uid, &spec).await.unwrap();
        match world.runtime.start(&id).await {
            Err(RuntimeError::Start { why, .. }) => assert_eq!(why, text),
            other => panic!("{other:?}"),
        }
        assert_eq!(world.exit(&id).await, (128, ExitReason::StartError(text.to_owned())));
    }
    world.finish().await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_later() {
    let world = World::new().await;
    world.sandbox().await;
    let polite = world.run(&world.spec("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")).await;
    await_log(&world, "ready").await;
    world.runtime.stop(&polite, Duration::from_secs(30)).await.unwrap();
    assert_eq!(world.exit(&polite).await, (7, ExitReason::Error));
    assert!(world.log().contains("bye"));
    let mut spec = world.spec("trap '' TERM; while :; do sleep 1; done");
    spec.attempt = 1;
    let stubborn = world.run(&spec).await;
    world.runtime.stop(&stubborn, Duration::from_millis(100)).await.unwrap();
    assert_eq!(world.exit(&stubborn).await.0, 137);
    world.finish().await;
}
