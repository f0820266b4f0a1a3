//! Commands in containers, attachments, terminals, and connections into pods.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
mod support;

use std::time::Duration;

use runtime::{ExecSpec, Runtime, RuntimeError, Session, TermSize};
use support::{POD, World, await_log};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn command(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

fn exec(script: &str, tty: bool, stdin: bool) -> ExecSpec {
    ExecSpec { command: command(script), tty, stdin }
}

async fn read_all(source: Option<runtime::Reader>) -> String {
    let mut text = String::new();
    if let Some(mut s) = source {
        tokio::time::timeout(Duration::from_secs(20), s.read_to_string(&mut text)).await.unwrap().unwrap();
    }
    text
}

async fn read_until(source: &mut runtime::Reader, text: &str) -> String {
    let mut got = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&got).contains(text) {
            assert_ne!(source.read_buf(&mut got).await.unwrap(), 0, "ended before {text:?}");
        }
    };
    let timely = tokio::time::timeout(Duration::from_secs(20), read).await;
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(timely.is_ok(), "{text:?} does not come, only {got:?}");
    got
}

#[tokio::test]
async fn commands_run_beside_the_program() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("exec sleep 1000");
    spec.user.uid = Some(33);
    spec.env = vec![("MINE".into(), "1".into())];
    spec.working_dir = Some("/made/for/it".into());
    let id = world.run(&spec).await;

    let session = world
        .runtime
        .exec(&id, &exec("cat; echo err >&2; id -u; pwd; echo $MINE$FROM_IMAGE$HOME; exit 5", false, true))
        .await;
    let Session { stdin, stdout, stderr, exit, .. } = session.unwrap();
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"through stdin\n").await.unwrap();
    drop(stdin);
    assert_eq!(read_all(stdout).await, "through stdin\n33\n/made/for/it\n1yes/home/web\n");
    assert_eq!(read_all(stderr).await, "err\n");
    assert_eq!(exit.await.unwrap(), 5);

    let sees = world.runtime.exec_sync(&id, &command("ps; kill -9 $$"), Duration::from_secs(20)).await.unwrap();
    assert_eq!(sees.exit_code, 137);
    assert!(String::from_utf8_lossy(&sees.output).contains("sleep 1000"), "shares the PID namespace");
    let much = world.runtime.exec_sync(&id, &command("seq 1 100000"), Duration::from_secs(20)).await.unwrap();
    assert_eq!((much.exit_code, much.output.len()), (0, 16 << 10));
    match world.runtime.exec_sync(&id, &["no-such".to_owned()], Duration::from_secs(20)).await {
        Err(RuntimeError::Start { why, .. }) => {
            assert_eq!(why, r#"exec: "no-such": executable file not found in $PATH"#)
        }
        other => panic!("{other:?}"),
    }
    world.finish().await;
}

#[tokio::test]
async fn commands_die_with_their_session() {
    let world = World::new().await;
    world.sandbox().await;
    let id = world.run(&world.spec("exec sleep 1000")).await;
    let slow = world.runtime.exec_sync(&id, &command("sleep 555"), Duration::from_millis(200)).await;
    assert!(matches!(slow, Err(RuntimeError::Timeout(_))), "{slow:?}");
    drop(world.runtime.exec(&id, &exec("sleep 556", false, false)).await.unwrap());
    for _ in 0..500 {
        let ps = world.runtime.exec_sync(&id, &command("ps"), Duration::from_secs(20)).await.unwrap();
        let text = String::from_utf8_lossy(&ps.output).into_owned();
        if !text.contains("sleep 55") {
            return world.finish().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a command outlives its session");
}

#[tokio::test]
async fn output_held_open_does_not_hold_up_exec_sync() {
    let world = World::new().await;
    world.sandbox().await;
    let id = world.run(&world.spec("exec sleep 1000")).await;
    let out = world.runtime.exec_sync(&id, &command("sleep 1000 & echo done"), Duration::from_secs(30)).await.unwrap();
    assert_eq!((out.exit_code, out.output.as_slice()), (0, b"done\n".as_slice()));
    world.finish().await;
}

#[tokio::test]
async fn a_command_with_a_terminal() {
    let world = World::new().await;
    world.sandbox().await;
    let id = world.run(&world.spec("exec sleep 1000")).await;
    let script = "tty; test -t 0 && echo is-tty; echo $TERM; read line; echo got-$line; stty size; exit 4";
    let Session { stdin, stdout, stderr, resize, exit } =
        world.runtime.exec(&id, &exec(script, true, true)).await.unwrap();
    assert!(stderr.is_none());
    let (mut stdin, mut stdout) = (stdin.unwrap(), stdout.unwrap());
    let text = read_until(&mut stdout, "xterm").await;
    assert!(text.contains("/dev/pts/0") && text.contains("is-tty"), "{text}");
    resize.unwrap().send(TermSize { width: 123, height: 45 }).await.unwrap();
    // The size is set by a task of its own; the prompt is answered after it had its turn.
    tokio::time::sleep(Duration::from_millis(100)).await;
    stdin.write_all(b"words\n").await.unwrap();
    let text = read_all(Some(stdout)).await;
    assert!(text.contains("got-words") && text.contains("45 123"), "{text}");
    assert_eq!(exit.await.unwrap(), 4);
    world.finish().await;
}

#[tokio::test]
async fn attaching_shares_the_programs_streams() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("echo ready; while read line; do echo out-$line; echo err-$line >&2; done; exit 6");
    (spec.stdin, spec.stdin_once) = (true, true);
    let id = world.run(&spec).await;
    await_log(&world, "ready").await;
    let onlooker = world.runtime.attach(&id, false).await.unwrap();
    let Session { stdin, stdout, stderr, resize, exit } = world.runtime.attach(&id, true).await.unwrap();
    assert!(resize.is_none() && onlooker.stdin.is_none());
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"a\nb\n").await.unwrap();
    drop(stdin);
    assert_eq!(read_all(stdout).await, "out-a\nout-b\n");
    assert_eq!(read_all(stderr).await, "err-a\nerr-b\n");
    assert_eq!(exit.await.unwrap(), 6);
    assert_eq!(read_all(onlooker.stdout).await, "out-a\nout-b\n");
    assert!(matches!(world.runtime.attach(&id, false).await, Err(RuntimeError::NotRunning(_))));
    world.finish().await;
}

#[tokio::test]
async fn attaching_to_a_terminal() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("tty; read line; stty size; echo got-$line; test -c /dev/console && echo console");
    (spec.stdin, spec.tty) = (true, true);
    let id = world.run(&spec).await;
    await_log(&world, "/dev/pts/0").await;
    let Session { stdin, stdout, stderr, resize, exit } = world.runtime.attach(&id, true).await.unwrap();
    assert!(stderr.is_none());
    resize.unwrap().send(TermSize { width: 99, height: 11 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"x\n").await.unwrap();
    let text = read_all(stdout).await;
    assert!(text.contains("11 99") && text.contains("got-x") && text.contains("console"), "{text}");
    assert_eq!(exit.await.unwrap(), 0);
    world.finish().await;
}

#[tokio::test]
async fn much_output_arrives_complete_at_a_slow_reader() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("read go; seq 1 200000");
    spec.stdin = true;
    let id = world.run(&spec).await;
    let Session { stdin, stdout, exit, .. } = world.runtime.attach(&id, true).await.unwrap();
    stdin.unwrap().write_all(b"go\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = read_all(stdout).await;
    assert_eq!(text.lines().count(), 200_000);
    assert!(text.ends_with("\n200000\n"));
    assert_eq!(exit.await.unwrap(), 0);
    world.finish().await;
}

#[tokio::test]
async fn connections_reach_into_the_pod() {
    let world = World::new().await;
    let uid = world.sandbox().await;
    let id = world.run(&world.spec("echo ready; nc -l -p 8080 -e echo from-inside; sleep 1000")).await;
    await_log(&world, "ready").await;
    let mut tries = 0;
    let mut stream = loop {
        match world.runtime.dial(&uid, 8080).await {
            Ok(stream) => break stream,
            Err(e) => {
                tries += 1;
                assert!(tries < 500, "{e}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "from-inside\n");
    assert!(matches!(world.runtime.dial(&uid, 1).await, Err(RuntimeError::Io { .. })));
    let _ = (id, POD);
    world.finish().await;
}
