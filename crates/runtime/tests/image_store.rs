//! With the real image store: from an archive to a running container.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
mod support;

use std::sync::Arc;

use runtime::{Embedded, Options, Runtime, RuntimeError};
use support::{World, sandbox};

#[tokio::test]
async fn an_imported_image_runs() {
    let world = World::new().await;
    let at = |p: &str| world.dir.path().join(p);
    let tar =
        std::process::Command::new("tar").arg("-cf").arg(at("box.tar")).arg("-C").arg(at("base")).arg(".").status();
    assert!(tar.unwrap().success());
    let store = images::Images::open(at("images"), images::RegistryConfig::default()).unwrap();
    store.import(&at("box.tar"), Some("box"), &()).await.unwrap();
    let runtime = Embedded::open(Options {
        dir: at("runtime2"),
        images: Arc::new(store),
        network: world.network.clone(),
        cgroup_root: format!("{}-store", world.name),
        self_exe: env!("CARGO_BIN_EXE_runtime-test-shim").into(),
    })
    .await
    .unwrap();
    let info = runtime.image("box").await.unwrap().unwrap();
    assert!(
        info.size_bytes > 100_000 && info.repo_tags.iter().any(|t| t == "docker.io/library/box:latest"),
        "{info:?}"
    );
    assert_eq!(runtime.images().await.unwrap().len(), 1);
    assert!(runtime.image("absent").await.unwrap().is_none());
    assert!(matches!(runtime.image("Bad:Name:").await, Err(RuntimeError::BadImageName { .. })));
    let uid = runtime.run_sandbox(&sandbox()).await.unwrap().spec.uid;
    let id = runtime.create(&uid, &world.spec("grep -q web /etc/passwd && exec sleep 1000")).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert!(runtime.images_in_use().await.unwrap().contains(&info.id));
    let out = runtime.exec_sync(&id, &["hostname".to_owned()], std::time::Duration::from_secs(20)).await.unwrap();
    assert_eq!(out.output, b"pod-host\n");
    runtime.remove_all().await.unwrap();
    // Here because the world's own check looks below its first runtime only.
    assert!(runtime.list().await.unwrap().is_empty());
    world.finish().await;
}
