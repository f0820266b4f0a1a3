//! Pulls from a small registry of our own on the loopback interface.
mod common;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{
    Made, file, gzip, image, index, layer, left_in,
    registry::{Login, Registry},
    sha,
};
use images::{Credentials, GcPolicy, Image, ImageError, Images, Progress, RegistryConfig, Step, normalize};
use parking_lot::Mutex;
use serde_json::json;

/// Bytes that do not compress to nothing.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + u8::try_from(state % 90).expect("small"))
    };
    (0..length).map(|_| next()).collect()
}

fn app() -> Made {
    image(&[layer(&[file("base", &noise(1, 100_000))]), layer(&[file("app", &noise(2, 100_000))])], gzip)
}

fn open(dir: &tempfile::TempDir) -> Images {
    Images::open(dir.path().join("images"), RegistryConfig::default()).expect("open")
}

async fn pull(images: &Images, name: &str, auth: &[Credentials]) -> Result<Image, ImageError> {
    images.pull(&normalize(name).expect("name"), auth, Arc::new(())).await
}

fn user(registry: &str, password: &str) -> Credentials {
    Credentials { registry: registry.into(), user: "user".into(), password: password.into() }
}

#[tokio::test]
async fn pulls_an_image_of_this_platform_and_fetches_nothing_twice() {
    let registry = Registry::start(Login::None).await;
    let made = app();
    registry.offer("team/app:1", &made);
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let name = format!("{}/team/app:1", registry.host);
    let pulled = pull(&images, &name, &[]).await.expect("pull");
    assert_eq!(pulled.id, sha(&made.config));
    assert_eq!(pulled.names, std::slice::from_ref(&name));
    let top = sha(&index(&made, &json!({})));
    assert_eq!(pulled.repo_digests, [format!("{}/team/app@{top}", registry.host)]);
    assert_eq!(pulled.manifest_digest.as_deref(), Some(sha(&made.manifest).as_str()));
    assert_eq!(pulled.size, 200_000);
    let lower = images.rootfs(&pulled).lower;
    assert_eq!(fs::read_to_string(lower[0].join("app")).expect("read"), noise(2, 100_000));
    assert_eq!(registry.served().len(), 3, "a configuration and two layers");
    pull(&images, &name, &[]).await.expect("again");
    assert_eq!(registry.served().len(), 4, "only the configuration");
    let by_digest = format!("{}/team/app@{top}", registry.host);
    let same = pull(&images, &by_digest, &[]).await.expect("by digest");
    assert_eq!(same.id, pulled.id);
    assert_eq!(images.find(&by_digest).expect("find").map(|i| i.id), Some(pulled.id));
    let next = image(&[layer(&[file("base", &noise(1, 100_000))]), layer(&[file("app", "2")])], gzip);
    registry.offer("team/app:2", &next);
    pull(&images, &format!("{}/team/app:2", registry.host), &[]).await.expect("next version");
    assert_eq!(registry.served().len(), 7, "its configuration and its own layer");
}

#[tokio::test]
async fn pulls_at_once_share_their_work() {
    let registry = Registry::start(Login::None).await;
    registry.offer("app:1", &app());
    registry.offer("app:same", &app());
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let names = [1, 2, 3, 4].map(|n| format!("{}/app:{}", registry.host, if n % 2 == 0 { "1" } else { "same" }));
    let start = |name: &String| {
        let (images, reference) = (images.clone(), normalize(name).expect("name"));
        tokio::spawn(async move { images.pull(&reference, &[], Arc::new(())).await })
    };
    let all = futures::future::join_all(names.iter().map(start)).await;
    let ids: Vec<String> = all.into_iter().map(|i| i.expect("join").expect("pull").id).collect();
    assert!(ids.windows(2).all(|p| p[0] == p[1]));
    let layers = registry.blobs.lock().expect("lock").iter().filter(|(d, _)| *d != ids[0]).count();
    assert_eq!(layers, 2, "each layer once, under whatever name");
    assert_eq!(images.list().expect("list")[0].names.len(), 2);
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_stopped() {
    let registry = Registry::start(Login::None).await;
    registry.offer("app:1", &app());
    registry.broken.store(2, Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let pulled = pull(&images, &format!("{}/app:1", registry.host), &[]).await.expect("pull");
    assert_eq!(pulled.size, 200_000);
    let resumed = registry.served().iter().filter(|offset| **offset > 0).count();
    assert_eq!(resumed, 2, "{:?}", registry.served());
    let partial = fs::read_dir(dir.path().join("images/partial")).expect("read").flatten();
    let left: Vec<_> = partial.map(|e| e.file_name()).filter(|n| !n.to_string_lossy().ends_with(".lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn users_are_asked_for_and_refused_in_known_words() {
    for login in [Login::Basic, Login::Token] {
        let registry = Registry::start(login).await;
        registry.offer("private/app:1", &app());
        let dir = tempfile::tempdir().expect("dir");
        let images = open(&dir);
        let name = format!("{}/private/app:1", registry.host);
        let others = [user("quay.io", "pass"), user(&format!("{}/other", registry.host), "pass")];
        for auth in [&[][..], &[user(&registry.host, "wrong")][..], &others[..]] {
            let refused = pull(&images, &name, auth).await.expect_err("no valid user");
            let text = base::chain(&refused);
            let expect = format!(
                "failed to resolve reference \"{name}\": pull access denied, repository does not exist or may require \
                 authorization: "
            );
            assert!(text.starts_with(&expect), "{text}");
        }
        let both = [user(&registry.host, "wrong"), user(&format!("http://{}/private", registry.host), "pass")];
        pull(&images, &name, &both).await.expect("the right user");
    }
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why() {
    let registry = Registry::start(Login::None).await;
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let host = &registry.host;
    let name = format!("{host}/no/such:1");
    let text = base::chain(&pull(&images, &name, &[]).await.expect_err("absent"));
    assert_eq!(text, format!("failed to resolve reference \"{name}\": {name}: not found; check the name and its tag"));

    let mut other = app();
    other.config = String::from_utf8(other.config).expect("text").replace(common::arch(), "s390x").into_bytes();
    let wrong =
        json!({"manifests": [{"digest": sha(b"x"), "size": 1, "platform": {"os": "plan9", "architecture": "68k"}}]});
    registry.content.lock().expect("lock").insert("app:alien".into(), wrong.to_string().into_bytes());
    let text = base::chain(&pull(&images, &format!("{host}/app:alien"), &[]).await.expect_err("alien"));
    assert!(text.contains("no match for platform in manifest"), "{text}");

    let made = app();
    registry.offer("app:evil", &made);
    registry
        .content
        .lock()
        .expect("lock")
        .insert(made.blobs[0].0.clone(), gzip(&layer(&[file("evil", &noise(9, 100_000))])));
    let text = base::chain(&pull(&images, &format!("{host}/app:evil"), &[]).await.expect_err("swapped layer"));
    assert!(text.contains("digest") || text.contains("larger") || text.contains("ended after"), "{text}");
    registry.content.lock().expect("lock").insert(sha(&made.config), b"{}".to_vec());
    let text = base::chain(&pull(&images, &format!("{host}/app:evil"), &[]).await.expect_err("swapped configuration"));
    assert!(text.to_lowercase().contains("digest"), "{text}");
    assert_eq!(images.list().expect("list"), []);

    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let name = format!("127.0.0.1:{port}/app:1");
    let text = base::chain(&pull(&images, &name, &[]).await.expect_err("nobody there"));
    assert!(text.starts_with(&format!("failed to resolve reference \"{name}\": failed to do request: ")), "{text}");
    assert!(
        text.contains(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused; check the network")),
        "{text}"
    );
    // A host that speaks, but no TLS, was reached.
    let speaker = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("bind");
    let port = speaker.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = speaker.accept().await {
            // The client's greeting, so that closing is no reset that overtakes the answer.
            let mut greeting = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut greeting).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
        }
    });
    // Its own loopback name, which is no literal loopback address and so is spoken to with TLS.
    let refused = pull(&images, &format!("0.0.0.0:{port}/app:1"), &[]).await.expect_err("no TLS");
    let no_authorities = matches!(&refused, ImageError::Registry { why, .. } if why.contains("ca-certificates"));
    assert!(no_authorities || matches!(refused, ImageError::Untrusted { .. }), "{refused:?}");
    let temporary: Vec<String> = left_in(&dir.path().join("images")).into_iter().filter(|n| n.contains('-')).collect();
    assert!(temporary.is_empty(), "{temporary:?}");
}

/// One name, given by turns; who gave it last decides, whether or not the content is the same.
#[tokio::test]
async fn a_name_knows_whether_an_import_gave_it() {
    let registry = Registry::start(Login::None).await;
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let name = format!("{}/app:1", registry.host);
    let other = image(&[layer(&[file("other", "x")])], gzip);
    let archive = |made: &Made| {
        let names = json!({"io.containerd.image.name": name.as_str()});
        common::write_tar(&dir.path().join("a.tar"), &common::oci_parts(made, &names))
    };
    for (step, (made, import)) in
        [(app(), true), (app(), false), (app(), true), (other, true), (app(), false)].iter().enumerate()
    {
        let imported = if *import {
            images.import(&archive(made), None, &()).await.expect("import").remove(0)
        } else {
            registry.offer("app:1", made);
            pull(&images, &name, &[]).await.expect("pull")
        };
        let found = images.find(&name).expect("find").expect("present");
        assert_eq!(found.imported_as(&name), *import, "step {step}: {:?}", found.imported);
        // No registry can be asked about an id, so there an import that was ever made counts.
        assert!(found.imported_as(&imported.id), "step {step}: {:?}", found.imported);
    }
    images.import(&archive(&app()), None, &()).await.expect("import");
    assert!(images.remove(&name).expect("remove"));
    let pulled = pull(&images, &name, &[]).await.expect("pull");
    assert!(!pulled.imported_as(&name), "the import was forgotten with its name");
}

#[tokio::test]
async fn records_of_older_versions_count_as_pulled() {
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let names = json!({"io.containerd.image.name": "app:1"});
    let path = common::write_tar(&dir.path().join("a.tar"), &common::oci_parts(&app(), &names));
    images.import(&path, None, &()).await.expect("import");
    let index = dir.path().join("images/index.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&index).expect("read")).expect("JSON");
    let fields = record["images"][0].as_object_mut().expect("an image");
    assert!(fields.remove("imported").is_some());
    fs::write(&index, record.to_string()).expect("write");
    assert!(!open(&dir).find("app:1").expect("find").expect("present").imported_as("app:1"));
}

#[tokio::test]
async fn an_image_is_for_those_who_could_pull_it() {
    let registry = Registry::start(Login::Basic).await;
    registry.offer("private/app:1", &app());
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let name = format!("{}/private/app:1", registry.host);
    let right = user(&registry.host, "pass");
    let pulled = pull(&images, &name, std::slice::from_ref(&right)).await.expect("pull");
    let image = |images: &Images| images.find(&name).expect("find").expect("present");
    for way in [&name, &pulled.id, &pulled.repo_digests[0]] {
        assert!(!image(&open(&dir)).is_everybodys(way), "{way}");
    }
    let elsewhere = Credentials { registry: "quay.io".into(), ..right.clone() };
    for (users, want) in [
        (vec![right.clone()], true),
        (vec![], false),
        (vec![user(&registry.host, "wrong")], false),
        (vec![elsewhere], false),
        (vec![user(&registry.host, "wrong"), right.clone()], true),
    ] {
        assert_eq!(images.is_known_for(&image(&images), &name, &users), want, "{users:?}");
    }
    let record = fs::read_to_string(dir.path().join("images/index.json")).expect("read");
    assert!(!record.contains("pass"), "{record}");
    // The same image from a place where everybody gets it does not open the other.
    let public = Registry::start(Login::None).await;
    public.offer("app:1", &app());
    let open_name = format!("{}/app:1", public.host);
    pull(&images, &open_name, &[]).await.expect("pull");
    assert!(image(&images).is_everybodys(&open_name) && !image(&images).is_everybodys(&name));
    images.give_to_everybody(&name).expect("give");
    assert!(image(&images).is_everybodys(&name));
}

/// Always "too full": whatever may go does.
const FULL: GcPolicy =
    GcPolicy { high_percent: 0, low_percent: 0, min_age: Duration::ZERO, partial_age: Duration::from_secs(1) };

#[tokio::test]
async fn a_full_disk_removes_pulled_images_the_longest_unused_first() {
    let registry = Registry::start(Login::None).await;
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    for n in 0..3 {
        registry.offer(&format!("app:{n}"), &image(&[layer(&[file("own", &n.to_string())])], gzip));
        pull(&images, &format!("{}/app:{n}", registry.host), &[]).await.expect("pull");
    }
    let tar = dir.path().join("rootfs.tar");
    fs::write(&tar, layer(&[file("own", "imported")])).expect("write");
    images.import(&tar, Some("box:1"), &()).await.expect("import");
    let name = |n: u8| format!("{}/app:{n}", registry.host);
    let young = GcPolicy { min_age: Duration::from_secs(3600), ..FULL };
    assert_eq!(images.gc(&HashSet::new(), &young).expect("gc").removed_images, Vec::<String>::new());
    let used = images.find(&name(0)).expect("find").expect("present").id;
    let report = images.gc(&HashSet::from([used]), &FULL).expect("gc");
    assert_eq!(report.removed_images, [name(1), name(2)]);
    assert_eq!((report.removed_layers, report.freed_bytes, report.postponed), (2, 2, false));
    // The import stays: no registry may have it.
    let report = images.gc(&HashSet::new(), &FULL).expect("gc");
    assert_eq!(report.removed_images, [name(0)]);
    assert!(images.find("box:1").expect("find").is_some());
}

#[tokio::test]
async fn a_chosen_image_stays_until_its_container_shows_it() {
    let registry = Registry::start(Login::None).await;
    let dir = tempfile::tempdir().expect("dir");
    let images = open(&dir);
    let made = app();
    registry.offer("app:1", &made);
    let name = format!("{}/app:1", registry.host);
    pull(&images, &name, &[]).await.expect("pull");
    // Another process, which knows nothing of this one's choices, would remove it.
    let policy = GcPolicy { min_age: Duration::from_millis(1), ..FULL };
    tokio::time::sleep(Duration::from_millis(5)).await;
    let chosen = images.choose(&name).expect("choose").expect("present");
    let long = GcPolicy { min_age: Duration::from_secs(60), ..FULL };
    assert!(images.remove(&name).expect("remove"));
    assert_eq!(images.gc(&HashSet::new(), &long).expect("gc").removed_layers, 0);
    assert!(images.rootfs(&chosen).lower.iter().all(|l| l.is_dir()), "layers of a chosen image went");
    assert_eq!(images.find(&name).expect("find"), None);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let report = images.gc(&HashSet::new(), &policy).expect("gc");
    assert_eq!((report.removed_images, report.removed_layers), (vec![chosen.id], 2));
}

/// A small file system of its own, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let args = ["-t", "tmpfs", "-o", &format!("size={size}"), "none"];
        let mounted = std::process::Command::new("mount").args(args).arg(dir.path()).status().expect("run mount");
        assert!(mounted.success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_not_left_full() {
    let registry = Registry::start(Login::None).await;
    // Compressed it is too large to be downloaded; and small, but too large to be unpacked.
    registry.offer("app:noise", &image(&[layer(&[file("noise", &noise(3, 1_500_000))])], gzip));
    registry.offer("app:zeros", &image(&[layer(&[file("zeros", &"0".repeat(1_500_000))])], gzip));
    let small = Small::mount("1m");
    let images = Images::open(small.0.path().join("images"), RegistryConfig::default()).expect("open");
    for (tag, expect) in [("noise", "no space to write download file"), ("zeros", "\"zeros\": no space left on device")]
    {
        let name = format!("{}/app:{tag}", registry.host);
        let text = base::chain(&pull(&images, &name, &[]).await.expect_err("too large"));
        assert!(text.contains(expect) && text.contains("holdfast image rm"), "{text}");
        let partial = fs::read_dir(small.0.path().join("images/partial")).expect("read").flatten();
        let bytes: u64 = partial.map(|e| e.metadata().expect("metadata").len()).sum();
        assert_eq!((bytes, left_in(&small.0.path().join("images"))), (0, vec![]), "{tag}");
    }
}

#[tokio::test]
async fn a_mirror_stands_in_for_its_registry() {
    let mirror = Registry::start(Login::None).await;
    mirror.offer("library/app:1", &app());
    let dir = tempfile::tempdir().expect("dir");
    let dead = "http://127.0.0.1:9".to_owned();
    let mirrors = BTreeMap::from([("docker.io".to_owned(), vec![dead, format!("http://{}", mirror.host)])]);
    let config = RegistryConfig { mirrors, plain_http: vec![] };
    let images = Images::open(dir.path().join("images"), config).expect("open");
    let pulled = pull(&images, "app:1", &[]).await.expect("pull from the mirror");
    assert_eq!(pulled.names, ["docker.io/library/app:1"]);
    assert!(pulled.repo_digests[0].starts_with("docker.io/library/app@sha256:"));
}

#[tokio::test]
async fn progress_tells_of_each_layer() {
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);
    impl Progress for Log {
        fn step(&self, step: Step<'_>) {
            let text = match step {
                Step::Downloading { layer, done, total } if done == total => format!("downloaded {layer}"),
                Step::Unpacked { layer } => format!("unpacked {layer}"),
                Step::Done { name } => format!("done {name}"),
                _ => return,
            };
            self.0.lock().push(text);
        }
    }
    let registry = Registry::start(Login::None).await;
    let made = app();
    registry.offer("app:1", &made);
    let dir = tempfile::tempdir().expect("dir");
    let log = Arc::new(Log::default());
    let name = format!("{}/app:1", registry.host);
    open(&dir).pull(&normalize(&name).expect("name"), &[], log.clone()).await.expect("pull");
    let mut seen = log.0.lock().clone();
    assert_eq!(seen.pop(), Some(format!("done {name}")));
    seen.sort();
    let mut expect: Vec<String> =
        made.blobs[..2].iter().flat_map(|(d, _)| [format!("downloaded {d}"), format!("unpacked {d}")]).collect();
    expect.sort();
    assert_eq!(seen, expect);
}
