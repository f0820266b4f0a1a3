//! Where the test's things are, and what it takes of the machine.
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the test's things are: a mount that is shared, as a machine's are, so that propagation has where to go.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-test-matrix-").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open it");
        let path = dir.path().to_string_lossy().into_owned();
        run(&["mount", "--bind", &path, &path]);
        run(&["mount", "--make-private", &path]);
        run(&["mount", "--make-shared", &path]);
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory with what the rows look for.
    pub fn tree(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.join("d")).expect("make a directory");
        fs::write(path.join("f"), "top\n").and_then(|()| fs::write(path.join("d/f"), "deep\n")).expect("write");
        path.to_string_lossy().into_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Also what pods mounted in directories of the node, which stays when they go.
        let _ = Command::new("umount").args(["-R", "-l"]).arg(self.dir.path()).status();
    }
}

#[track_caller]
pub fn run(words: &[&str]) {
    assert!(Command::new(words[0]).args(&words[1..]).status().expect("run").success(), "{words:?}");
}

/// Pages that the test sets aside, and gives back.
pub struct HugePages {
    pub before: Option<String>,
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    pub fn new() -> Self {
        let count = || fs::read_to_string(HUGE_PAGES).ok()?.trim().parse::<u64>().ok();
        let is_2_mib = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir();
        let Some(before) = count().filter(|_| is_2_mib) else { return Self { before: None } };
        // The machine may not allow it, or have no room for them.
        let _ = fs::write(HUGE_PAGES, (before + 8).to_string());
        if count() != Some(before + 8) {
            let _ = fs::write(HUGE_PAGES, before.to_string());
            return Self { before: None };
        }
        Self { before: Some(before.to_string()) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(HUGE_PAGES, before);
        }
    }
}

/// A driver of `flexVolume` that binds a directory.
pub fn install_flex(place: &Place) -> String {
    let (share, plugins) = (place.tree("share"), place.path("plugins"));
    let program = plugins.join("example.com~bind/bind");
    fs::create_dir_all(program.parent().expect("above")).expect("make a directory");
    let script = format!(
        r#"#!/bin/sh
ok='{{"status":"Success"}}'
case $1 in
init) echo '{{"status":"Success","capabilities":{{"attach":false,"fsGroup":true}}}}' ;;
mount)
    case $3 in *'"kubernetes.io/readwrite":"ro"'*) mode=ro ;; *) mode=rw ;; esac
    mount --bind {share} "$2" && mount -o remount,bind,$mode "$2" && echo $ok ;;
unmount) umount "$2"; echo $ok ;;
*) echo '{{"status":"Not supported"}}'; exit 1 ;;
esac
"#
    );
    fs::write(&program, script).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set the mode");
    plugins.to_string_lossy().into_owned()
}
