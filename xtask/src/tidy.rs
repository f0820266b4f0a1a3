//! Rules about the source tree itself. Each prints the place and the way out.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// A file longer than this, its tests left out, does two jobs.
const FILE_LINES_MAX: usize = 700;
const LINE_CHARS_MAX: usize = 160;

/// Words that must not appear in the sources of a crate, and what to use instead.
const ABSENCES: &[(&str, &[(&str, &str)])] = &[
    (
        "controllers",
        &[
            ("tokio", "controllers decide only; the engine waits"),
            ("std::fs", "controllers do no I/O"),
            ("std::time::Instant", "time is an argument"),
            ("Timestamp::now", "time is an argument"),
            ("tracing::", "controllers return reasons; the engine logs"),
            ("rand::", "equal input, equal output"),
        ],
    ),
    ("store", &[("PersistentVolume", "the store knows no kinds"), ("k8s_openapi", "the store knows no kinds")]),
    (
        "volumes",
        &[
            ("rustix::mount", "reach the kernel through `sys::Sys`"),
            ("nix::mount", "reach the kernel through `sys::Sys`"),
        ],
    ),
    ("node", &[("store::", "the node is a client of the API")]),
];

/// Crates that may contain `unsafe`.
const UNSAFE_CRATES: &[&str] = &["sys", "runtime"];

pub fn run() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned();
    let mut faults = Vec::new();
    let crates = crates(&root, &mut faults);
    layers(&root, &crates, &mut faults);
    map_names_every_crate(&root, &crates, &mut faults);
    faults.extend(crate::licences::check(&root));
    for (name, dir) in crates.keys().map(|name| (name, root.join("crates").join(name))) {
        for file in rust_files(&dir.join("src")) {
            source(name, &root, &file, &mut faults);
        }
    }
    for fault in &faults {
        println!("{fault}");
    }
    println!("tidy: {} crates, {} faults", crates.len(), faults.len());
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Our crates with the crates of ours that each depends on (dev-dependencies aside).
fn crates(root: &Path, faults: &mut Vec<String>) -> BTreeMap<String, Vec<String>> {
    let output =
        Command::new("cargo").args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(root).output();
    let metadata: serde_json::Value = match output.map(|o| serde_json::from_slice(&o.stdout)) {
        Ok(Ok(value)) => value,
        _ => {
            faults.push("cargo metadata failed; run it by hand to see why".into());
            return BTreeMap::new();
        }
    };
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    packages
        .iter()
        .map(|package| {
            let own = package["dependencies"].as_array().into_iter().flatten();
            let own = own.filter(|d| d["path"].is_string() && d["kind"] != "dev").map(|d| text(&d["name"]));
            (text(&package["name"]), own.collect())
        })
        .collect()
}

fn layers(root: &Path, crates: &BTreeMap<String, Vec<String>>, faults: &mut Vec<String>) {
    let listed = fs::read_to_string(root.join("layers.toml")).unwrap_or_default();
    let allowed: BTreeMap<&str, &str> = listed.lines().filter_map(|l| l.split_once(" = ")).collect();
    for (name, uses) in crates {
        let Some(list) = allowed.get(name.as_str()) else {
            faults.push(format!("layers.toml: no line for crate {name}; add one that says what it may depend on"));
            continue;
        };
        for used in uses.iter().filter(|used| !list.contains(&format!("\"{used}\""))) {
            faults.push(format!("crates/{name}: depends on {used}, which layers.toml does not allow"));
        }
    }
}

fn map_names_every_crate(root: &Path, crates: &BTreeMap<String, Vec<String>>, faults: &mut Vec<String>) {
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for name in crates.keys().filter(|name| !map.contains(&format!("`{name}`"))) {
        faults.push(format!("ARCHITECTURE.md: does not name crate `{name}`"));
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn source(name: &str, root: &Path, file: &Path, faults: &mut Vec<String>) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let place = file.strip_prefix(root).unwrap_or(file).display();
    let product: Vec<&str> = text.lines().take_while(|l| !l.trim_start().starts_with("#[cfg(test)]")).collect();
    let is_test = file.components().any(|c| c.as_os_str() == "tests") || file.ends_with("tests.rs");
    if product.len() > FILE_LINES_MAX && !is_test {
        faults.push(format!(
            "{place}: {} lines before its tests; split it by job (limit {FILE_LINES_MAX})",
            product.len()
        ));
    }
    for (number, line) in text.lines().enumerate() {
        if line.chars().count() > LINE_CHARS_MAX && !line.contains("http") && !line.contains('"') {
            faults.push(format!("{place}:{}: line over {LINE_CHARS_MAX} characters", number + 1));
        }
    }
    let code = |line: &&str| !line.trim_start().starts_with("//");
    let bans = ABSENCES.iter().filter(|(of, _)| *of == name).flat_map(|(_, words)| *words);
    for (word, instead) in bans {
        if let Some(line) = product.iter().filter(|l| code(l)).find(|l| l.contains(word)) {
            faults.push(format!("{place}: `{word}` in `{}`: {instead}", line.trim()));
        }
    }
    let uses_unsafe = product
        .iter()
        .filter(|l| code(l))
        .any(|l| l.contains("unsafe {") || l.contains("unsafe fn") || l.contains("unsafe impl"));
    if uses_unsafe && !UNSAFE_CRATES.contains(&name) {
        faults.push(format!("{place}: `unsafe` outside {UNSAFE_CRATES:?}; put the call behind `sys`"));
    }
    if text.lines().any(|l| l.trim_start().starts_with("#[ignore")) {
        faults.push(format!("{place}: an ignored test; make it run or delete it"));
    }
}
