//! Runs after all other tests: nothing of theirs may be left on the machine.
use std::{fs, path::Path};

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn names(dir: &str) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Names that instances give: `holdfast-...` directories, `hf-...` and `hfv...` interfaces.
fn ours(name: &str) -> bool {
    ["holdfast-test-", "holdfast-demo-", "holdfast-pool", "holdfast-driver"].iter().any(|part| name.contains(part))
}

#[test]
fn nothing_is_left_behind() {
    let mut left = Vec::new();
    left.extend(lines("/proc/self/mountinfo").into_iter().filter(|l| ours(l)).map(|l| format!("mount: {l}")));
    for dir in ["/tmp", "/dev/shm"] {
        left.extend(names(dir).into_iter().filter(|n| ours(n)).map(|n| format!("directory: {dir}/{n}")));
    }
    left.extend(names("/sys/class/net").into_iter().filter(|n| n.starts_with("hf")).map(|n| format!("interface: {n}")));
    for device in names("/sys/block").into_iter().filter(|n| n.starts_with("loop")) {
        let file = lines(&format!("/sys/block/{device}/loop/backing_file")).join("");
        if ours(&file) {
            left.push(format!("loop device: {device} on {file}"));
        }
    }
    for pid in names("/proc").into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        let command =
            fs::read_to_string(Path::new("/proc").join(&pid).join("cmdline")).unwrap_or_default().replace('\0', " ");
        if ours(&command) {
            left.push(format!("process: {pid} {command}"));
        }
    }
    for hierarchy in names("/sys/fs/cgroup") {
        let dir = format!("/sys/fs/cgroup/{hierarchy}");
        left.extend(
            names(&dir).into_iter().filter(|n| n.starts_with("holdfast")).map(|n| format!("cgroup: {dir}/{n}")),
        );
    }
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}
