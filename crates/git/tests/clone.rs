//! Clones from real servers, by the process that does it in the product.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsString,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use git::{ARGUMENT, Cloned, Failed, Limits, Order, Request, heard};
use sys::{Bounds, Program, Ran, RealSys, Sys, confine::NOBODY};
use tempfile::TempDir;
use testkit::git_server::{GitServer, git, hostile, repositories, repository};

struct World {
    scratch: TempDir,
    repositories: PathBuf,
    limits: Limits,
    environment: Vec<(OsString, OsString)>,
}

impl World {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let repositories = repositories(scratch.path());
        Self { scratch, repositories, limits: Limits::default(), environment: Vec::new() }
    }

    /// Clones into a new directory, as a volume's plugin does. Returns it, too.
    fn clone(&self, repository: &str, revision: &str, directory: &str) -> (PathBuf, Result<Cloned, Failed>) {
        let volume = tempfile::tempdir_in(self.scratch.path()).unwrap().keep();
        chown(&volume, Some(NOBODY), Some(NOBODY)).unwrap();
        let request = Request {
            repository: repository.into(),
            revision: revision.into(),
            directory: directory.into(),
            most_bytes: None,
        };
        let ran = self.run(&request, &volume, &|| false).unwrap();
        let heard = heard(ran.status, &ran.output);
        if let Err(failed) = &heard {
            eprintln!("{repository} {revision}: {failed} {}", String::from_utf8_lossy(&ran.errors));
        }
        (volume, heard)
    }

    fn run(&self, request: &Request, volume: &Path, cancelled: &dyn Fn() -> bool) -> std::io::Result<Ran> {
        let (plan, local) = request.plan(std::slice::from_ref(&self.repositories)).unwrap();
        let local = local.map(|l| RealSys.open(&l.allowed.join(l.below)).unwrap());
        let opened = RealSys.open(volume).unwrap();
        let mut files = vec![opened.fd().unwrap()];
        files.extend(local.iter().map(|l| l.fd().unwrap()));
        let order = Order {
            plan,
            limits: self.limits,
            volume: files[0].as_raw_fd(),
            local: files.get(1).map(AsRawFd::as_raw_fd),
        };
        let arguments = [OsString::from(ARGUMENT)];
        let program = Program {
            input: &order.to_input().unwrap(),
            files: &files,
            environment: &self.environment,
            ..Program::new(Path::new(env!("CARGO_BIN_EXE_git-test-clone")), &arguments)
        };
        let bounds = Bounds { time: Duration::from_secs(60), output_bytes: 1 << 16 };
        RealSys.run(&program, &bounds, cancelled)
    }

    fn cloned(&self, repository: &str, revision: &str) -> PathBuf {
        let (volume, heard) = self.clone(repository, revision, ".");
        heard.unwrap_or_else(|e| panic!("{repository} {revision}: {e}"));
        volume
    }

    /// Nothing comes of it, and the words say why.
    #[track_caller]
    fn fails(&self, repository: &str, revision: &str, words: &str) {
        let (volume, heard) = self.clone(repository, revision, ".");
        let told = heard.expect_err(repository).to_string();
        assert!(told.contains(words), "{repository} {revision}: {told}");
        // What a server says may be for other eyes than the author's.
        assert!(!told.contains("CANARY"), "{told}");
        assert!(!Path::new("/canary").exists() && !volume.join("a/post-checkout").exists());
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

#[test]
fn every_revision() {
    let world = World::new();
    let (first, last) = repository(&world.repositories, "app");
    let daemon = GitServer::daemon(&world.repositories);
    let server = format!("git://{}/app.git", daemon.address);
    for (revision, content, branch) in [
        ("", "two\n", "main"),
        ("main", "two\n", "main"),
        ("dev", "dev\n", "dev"),
        ("v1", "one\n", "HEAD"),
        ("v2", "two\n", "HEAD"),
        (first.as_str(), "one\n", "HEAD"),
        (&last[..7], "two\n", "HEAD"),
        ("main~1", "one\n", "HEAD"),
        ("origin/dev", "dev\n", "HEAD"),
    ] {
        let volume = world.cloned(&server, revision);
        assert_eq!(text(volume.join("README")), content, "{revision}");
        assert_eq!(git(&volume, &["rev-parse", "--abbrev-ref", "HEAD"]), branch, "{revision}");
        if branch != "HEAD" {
            assert_eq!(git(&volume, &["rev-parse", "--abbrev-ref", "@{upstream}"]), format!("origin/{branch}"));
        }
    }
    for revision in ["nope", "deadbeef", "refs/heads/nope", "main:README", "v1^{tree}"] {
        world.fails(&server, revision, "gitRepo.revision: ");
    }
}

#[test]
fn every_kind_of_server_and_a_whole_repository_of_each() {
    let world = World::new();
    let (first, _) = repository(&world.repositories, "app");
    let daemon = GitServer::daemon(&world.repositories);
    let http = GitServer::http(&world.repositories, None, None);
    for server in [
        format!("git://{}/app.git", daemon.address),
        format!("http://{}/app.git", http.address),
        format!("http://{}/moved/app.git", http.address),
        format!("file://{}/app.git", world.repositories.display()),
        world.repositories.join("app.work").display().to_string(),
    ] {
        for (revision, content) in [("", "two\n"), ("dev", "dev\n"), (first.as_str(), "one\n")] {
            let volume = world.cloned(&server, revision);
            assert_eq!(text(volume.join("README")), content, "{server} {revision}");
        }
        let volume = world.cloned(&server, "");
        assert_eq!(git(&volume, &["status", "--porcelain"]), "", "{server}");
        git(&volume, &["fsck", "--strict"]);
        assert_eq!(git(&volume, &["log", "--format=%s"]), "two\none");
        assert_eq!(git(&volume, &["tag"]), "v1\nv2");
        assert_eq!(git(&volume, &["remote", "get-url", "origin"]), server);
        assert!(!volume.join(".git/hooks").exists());
        assert_eq!(std::fs::read_link(volume.join("link")).unwrap(), Path::new("README"));
        let mode = |file: &str| std::fs::metadata(volume.join(file)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("run.sh"), mode("README"), mode("sub")), (0o755, 0o644, 0o755));
        assert_eq!(std::fs::metadata(volume.join("README")).unwrap().uid(), NOBODY);
    }
}

#[test]
fn the_directory_is_the_volume_or_below_it_or_the_repositorys_own() {
    let world = World::new();
    repository(&world.repositories, "app");
    let server = format!("file://{}/app.git", world.repositories.display());
    for (directory, readme) in [(".", "README"), ("", "app/README"), ("web", "web/README"), ("a/b/c", "a/b/c/README")] {
        let (volume, heard) = world.clone(&server, "v1", directory);
        assert_eq!(heard.map(|c| c.entries), Ok(5), "{directory}");
        assert_eq!(text(volume.join(readme)), "one\n");
    }
}

#[test]
fn an_empty_repository_is_one_unless_a_revision_is_asked_for() {
    let world = World::new();
    let empty = world.repositories.join("empty.git");
    std::fs::create_dir(&empty).unwrap();
    git(&empty, &["init", "-q", "--bare", "-b", "trunk"]);
    let daemon = GitServer::daemon(&world.repositories);
    for server in [format!("git://{}/empty.git", daemon.address), empty.display().to_string()] {
        let (volume, heard) = world.clone(&server, "", ".");
        assert_eq!(heard, Ok(Cloned { commit: None, entries: 0 }), "{server}");
        assert_eq!(git(&volume, &["symbolic-ref", "HEAD"]), "refs/heads/trunk");
        world.fails(&server, "trunk", "gitRepo.revision: ");
    }
    repository(&world.repositories, "app");
    git(&world.repositories.join("app.git"), &["symbolic-ref", "HEAD", "refs/heads/gone"]);
    world.fails(&format!("git://{}/app.git", daemon.address), "", "branch that it does not have");
}

#[test]
fn what_a_server_does_wrong_is_told_without_its_words() {
    let world = World::new();
    repository(&world.repositories, "app");
    let servers = (GitServer::daemon(&world.repositories), GitServer::http(&world.repositories, None, None));
    let (daemon, http) = (servers.0.address, servers.1.address);
    let page = GitServer::saying(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nCANARY");
    let junk = GitServer::saying(b"CANARYCANARYCANARY");
    let refusal = GitServer::saying(b"0019ERR CANARY CANARY CANA");
    for (repository, words) in [
        (format!("git://{daemon}/none.git"), "no such repository"),
        (format!("http://{http}/none.git"), "no such repository (HTTP status 404)"),
        (format!("http://{http}/status/500/x.git"), "HTTP status 500"),
        (format!("http://{http}/status/403/x.git"), "HTTP status 403"),
        (format!("https://{http}/app.git"), "TLS"),
        ("git://nowhere.invalid/x.git".into(), "its host is not known"),
        ("https://nowhere.invalid/x.git".into(), "its host is not known"),
        (format!("http://{}/x.git", page.address), "smart HTTP"),
        (format!("git://{}/x.git", page.address), "git's protocol"),
        (format!("http://{}/x.git", junk.address), "git's protocol"),
        (format!("git://{}/x.git", junk.address), "git's protocol"),
        (format!("git://{}/x.git", refusal.address), "refuses it"),
    ] {
        world.fails(&repository, "", words);
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for scheme in ["git", "http", "https"] {
        world.fails(&format!("{scheme}://{nobody}/x.git"), "", "Connection refused");
    }
}

#[test]
fn a_password_goes_to_its_server_only_and_is_kept_nowhere() {
    let mut world = World::new();
    repository(&world.repositories, "app");
    let (server, certificate) = GitServer::https(&world.repositories, Some(("me", "s3cr@t")));
    let at = |login: &str| format!("https://{login}{}/app.git", server.address);
    world.fails(&at("me:s3cr%40t@"), "", "TLS: invalid peer certificate");
    let file = world.repositories.join("ca.pem");
    std::fs::write(&file, certificate).unwrap();
    world.environment.push(("SSL_CERT_FILE".into(), file.into()));
    let volume = world.cloned(&at("me:s3cr%40t@"), "dev");
    assert_eq!(text(volume.join("README")), "dev\n");
    let mut todo = vec![volume];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(entry.path()),
                false => {
                    let bytes = std::fs::read(entry.path()).unwrap();
                    assert!(!bytes.windows(4).any(|w| w == b"s3cr"), "{}", entry.path().display());
                }
            }
        }
    }
    world.fails(&at(""), "", "asks for a user and a password");
    world.fails(&at("me:wrong@"), "", "HTTP status 401");
}

/// What git itself refuses, and what would be written elsewhere, or be run, if it were not.
#[test]
fn hostile_trees_are_refused() {
    const HOOK: (&str, &str) = ("HOOKS", "100755 BLOB post-checkout");
    let world = World::new();
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("cve_2024_10220", &[HOOK, ("GIT", "40000 HOOKS hooks"), ("T", "40000 GIT .git")]),
        ("cve_2014_9390", &[HOOK, ("GIT", "40000 HOOKS hooks"), ("T", "40000 GIT .GIT")]),
        ("cve_2019_1352_ntfs", &[HOOK, ("T", "40000 HOOKS git~1")]),
        ("cve_2014_9390_hfs", &[HOOK, ("T", "40000 HOOKS .g\u{200c}it")]),
        ("cve_2019_1353_stream", &[HOOK, ("T", "40000 HOOKS .git::$INDEX_ALLOCATION")]),
        ("dot_git_file", &[("T", "100644 BLOB .git")]),
        ("dot_git_link", &[("T", "120000 >/etc .git")]),
        ("up", &[HOOK, ("T", "40000 HOOKS ..")]),
        ("here", &[HOOK, ("T", "40000 HOOKS .")]),
        ("empty_name", &[("T", "100644 BLOB ")]),
        ("slash", &[("T", "100644 BLOB a/post-checkout")]),
        ("absolute", &[("T", "100644 BLOB /canary")]),
        ("backslash", &[("T", "100644 BLOB ..\\canary")]),
        ("cve_2018_11235_gitmodules_link", &[("T", "120000 >BLOB .gitmodules")]),
        ("cve_2021_21300_link_then_directory", &[HOOK, ("T", "120000 >/tmp a\n40000 HOOKS a")]),
        ("cve_2024_32002_same_name", &[HOOK, ("T", "40000 HOOKS a\n120000 >.git a")]),
        ("twice", &[("T", "100644 BLOB a\n100644 BLOB a")]),
    ];
    for (name, trees) in cases {
        hostile(&world.repositories, name, trees);
        world.fails(&format!("{}/{name}.git", world.repositories.display()), "", "has a name that cannot be");
    }
}

/// Links lead wherever they like: the pod follows them, in its own root, the node never.
#[test]
fn links_are_only_links_and_submodules_are_empty_directories() {
    let world = World::new();
    hostile(&world.repositories, "links", &[("T", "120000 >/etc/passwd a\n120000 >../../x b\n120000 >.git/config c")]);
    let volume = world.cloned(&format!("{}/links.git", world.repositories.display()), "");
    let to = |name: &str| std::fs::read_link(volume.join(name)).unwrap();
    assert_eq!([to("a"), to("b"), to("c")].map(|t| t.display().to_string()), ["/etc/passwd", "../../x", ".git/config"]);
    repository(&world.repositories, "app");
    let work = world.repositories.join("app.work");
    std::fs::write(
        work.join(".gitmodules"),
        "[submodule \"s\"]\n\tpath = s\n\turl = ext::sh -c id\n\tupdate = !touch /canary\n",
    )
    .unwrap();
    let head = git(&work, &["rev-parse", "HEAD"]);
    git(&work, &["update-index", "--add", "--cacheinfo", &format!("160000,{head},s")]);
    git(&work, &["add", ".gitmodules"]);
    git(&work, &["commit", "-qm", "submodule"]);
    let volume = world.cloned(&work.display().to_string(), "");
    assert_eq!(std::fs::read_dir(volume.join("s")).unwrap().count(), 0);
}

/// Filters are programs that a repository asks for and a configuration names. Nobody's configuration is read.
#[test]
fn no_filter_no_hook_no_configuration_of_a_local_repository_counts() {
    let world = World::new();
    repository(&world.repositories, "app");
    let (work, bare) = (world.repositories.join("app.work"), world.repositories.join("app.git"));
    std::fs::write(work.join(".gitattributes"), "README filter=evil\nrun.sh eol=crlf\n").unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "filter"]);
    testkit::git_server::publish(&world.repositories, "app");
    for dir in [work.join(".git"), bare] {
        let script = "#!/bin/sh\ntouch /canary\n";
        for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
            std::fs::create_dir_all(dir.join("hooks")).unwrap();
            std::fs::write(dir.join("hooks").join(hook), script).unwrap();
            std::fs::set_permissions(dir.join("hooks").join(hook), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let evil = "[filter \"evil\"]\n\tsmudge = touch /canary\n\trequired\n[core]\n\tfsmonitor = touch /canary\n";
        let config = text(dir.join("config")) + evil;
        std::fs::write(dir.join("config"), config).unwrap();
    }
    for server in [work, world.repositories.join("app.git")] {
        let volume = world.cloned(&server.display().to_string(), "");
        assert!(!Path::new("/canary").exists());
        assert_eq!(text(volume.join("README")), "two\n");
        assert!(text(volume.join("run.sh")).contains("\r\n"), "git's own conversions are done");
        assert!(!text(volume.join(".git/config")).contains("evil"));
    }
}

/// The class of CVE-2022-39253 and CVE-2024-32465: a local repository whose parts are links to what others may not read.
#[test]
fn cve_2022_39253_no_link_of_a_local_repository_is_followed() {
    let world = World::new();
    for part in ["objects", "objects/pack", "HEAD", "refs/heads", "."] {
        repository(&world.repositories, "app");
        let bare = world.repositories.join("app.git");
        let at = match part {
            "." => bare.clone(),
            part => bare.join(part),
        };
        let moved = world.scratch.path().join("moved");
        let _ = std::fs::remove_dir_all(&moved).or_else(|_| std::fs::remove_file(&moved));
        if !at.exists() {
            continue;
        }
        std::fs::rename(&at, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &at).unwrap();
        let repository = bare.display().to_string();
        let request = Request { repository, revision: "main".into(), directory: ".".into(), most_bytes: None };
        let (_, local) = request.plan(std::slice::from_ref(&world.repositories)).unwrap();
        let local = local.unwrap();
        // As the plugin opens it: no link on the way.
        let top = RealSys.open(&local.allowed).unwrap();
        let opened = RealSys.open_at(&top, &local.below, sys::Reach::Plain).and_then(|at| RealSys.stat(&at));
        if part == "." {
            assert!(opened.map_or(true, |stat| !stat.is_dir()), "a link was followed");
        } else {
            let (_, heard) = world.clone(&bare.display().to_string(), "main", ".");
            heard.expect_err(part);
        }
        let _ = std::fs::remove_file(&at);
        let _ = std::fs::remove_dir_all(world.repositories.join("app.work"));
        let _ = std::fs::remove_dir_all(&bare);
    }
}

#[test]
fn limits_hold() {
    let mut world = World::new();
    repository(&world.repositories, "app");
    std::fs::write(world.repositories.join("app.work/large"), vec![7; 3 << 20]).unwrap();
    git(&world.repositories.join("app.work"), &["add", "."]);
    git(&world.repositories.join("app.work"), &["commit", "-qm", "large"]);
    testkit::git_server::publish(&world.repositories, "app");
    let daemon = GitServer::daemon(&world.repositories);
    let servers = [format!("git://{}/app.git", daemon.address), format!("{}/app.git", world.repositories.display())];
    for server in &servers {
        world.limits = Limits { bytes: 2 << 20, entries: 100 };
        world.fails(server, "", "the limit is 2 MiB");
        world.limits = Limits { bytes: 4 << 20, entries: 5 };
        world.fails(server, "", "more than 5 files and directories");
        world.limits = Limits { bytes: 4 << 20, entries: 6 };
        world.cloned(server, "");
        world.limits = Limits { bytes: 1000, entries: 100 };
        world.fails(server, "", "which is the limit");
    }
    // Few objects of a tree without end in sight.
    let mut trees = vec![("T0".to_owned(), "100644 BLOB a\n100644 BLOB b".to_owned())];
    for level in 1..30 {
        let below = format!("T{}", level - 1);
        trees.push((format!("T{level}"), format!("40000 {below} a\n40000 {below} b")));
    }
    let trees: Vec<(&str, &str)> = trees.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    hostile(&world.repositories, "bomb", &trees);
    world.limits = Limits { bytes: 1 << 30, entries: 1000 };
    world.fails(&format!("{}/bomb.git", world.repositories.display()), "", "more than 1000 files and directories");
}

/// What is left to the process, told by itself through what a repository can make it try.
#[test]
fn the_process_can_write_nowhere_else_and_become_nobody_else() {
    let mut world = World::new();
    let server = GitServer::silent();
    let volume = tempfile::tempdir_in(world.scratch.path()).unwrap().keep();
    chown(&volume, Some(NOBODY), Some(NOBODY)).unwrap();
    let others = Mounted::on(tempfile::tempdir_in(world.scratch.path()).unwrap().keep());
    world.environment.push(("MARK".into(), volume.clone().into()));
    let mark = format!("MARK={}", volume.display());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = &stop;
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let begun = std::time::Instant::now();
            let found = loop {
                if let Some(found) =
                    process_with(&mark).filter(|p| text(p.join("status")).contains("Uid:\t65534\t65534"))
                {
                    break found;
                }
                assert!(begun.elapsed() < Duration::from_secs(30), "the process does not appear");
                std::thread::sleep(Duration::from_millis(5));
            };
            let status = text(found.join("status"));
            let mounts = text(found.join("mountinfo"));
            let command = text(found.join("cmdline"));
            stopped.store(true, std::sync::atomic::Ordering::Relaxed);
            (status, mounts, command)
        });
        let request = Request {
            repository: format!("git://{}/x?canary", server.address),
            revision: String::new(),
            directory: ".".into(),
            most_bytes: None,
        };
        let error = world.run(&request, &volume, &|| stop.load(std::sync::atomic::Ordering::Relaxed)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
        watcher.join().unwrap()
    });
    let (status, mounts, command) = seen;
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Groups:\t \n"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let options: Vec<&str> = fields[5].split(',').collect();
        assert!(options.contains(&"noexec") && options.contains(&"nosuid"), "{mount}");
        assert!(options.contains(&"ro") || fields[4] == "/mnt", "{mount}");
        // Else nobody could take it out of use as long as this process runs.
        assert_ne!(fields[4], others.0.to_str().unwrap(), "{mount}");
    }
    assert!(!command.contains("canary"), "{command}");
    assert!(process_with(&format!("MARK={}", volume.display())).is_none(), "it outlives who cancelled it");
}

/// A filesystem of somebody else.
struct Mounted(PathBuf);

impl Mounted {
    fn on(at: PathBuf) -> Self {
        assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).status().unwrap().success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The process with this in its environment.
fn process_with(mark: &str) -> Option<PathBuf> {
    std::fs::read_dir("/proc").ok()?.flatten().map(|e| e.path()).find(|process| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|one| one == mark.as_bytes())
    })
}
