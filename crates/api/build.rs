//! Names the content of OpenAPI documents without making them: a hash over all that they are made from, which is this
//! crate's sources and the versions of the crates that bring the types.
use std::{fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    // FNV-1a.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    let lock = fs::read_to_string("../../Cargo.lock").unwrap_or_default();
    for package in lock.split("[[package]]") {
        if package.contains("name = \"k8s-openapi\"") || package.contains("name = \"schemars\"") {
            add(package.as_bytes());
        }
    }
    sources(Path::new("src"), &mut add);
    println!("cargo::rustc-env=SOURCES_HASH={hash:016X}");
}

/// Visits every file below a directory, in the order of names.
fn sources(dir: &Path, add: &mut impl FnMut(&[u8])) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, add);
        } else {
            add(path.to_string_lossy().as_bytes());
            add(&fs::read(&path).unwrap_or_default());
        }
    }
}
