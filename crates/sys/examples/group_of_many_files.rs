//! How long it takes to give a tree to a group: `cargo run --release -p sys --example group_of_many_files -- FILES`, as root; `TMPDIR` says where.
use std::{fs, io, path::Path, sync::atomic::AtomicU64, time::Instant};

use sys::{RealSys, Sys, tree};

fn main() -> io::Result<()> {
    let files: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    for (what, each) in [("one directory", files), ("directories of 1000", 1000)] {
        let top = std::env::temp_dir().join(format!("group-of-many-files-{}", std::process::id()));
        let measured = measure(&top, what, (files, each));
        fs::remove_dir_all(&top)?;
        measured?;
    }
    Ok(())
}

fn measure(top: &Path, what: &str, (files, each): (usize, usize)) -> io::Result<()> {
    for file in 0..files {
        let dir = top.join((file / each).to_string());
        if file % each == 0 {
            fs::create_dir_all(&dir)?;
        }
        fs::write(dir.join(file.to_string()), "")?;
    }
    let handle = RealSys.open(top)?;
    for (pass, gid) in [("all change", 4242), ("none changes", 4242), ("group changes", 4243)] {
        let start = Instant::now();
        tree::give_to_group(&RealSys, &handle, gid, false, &AtomicU64::new(0))?;
        println!("{files} files, {what}, {pass}: {:?}", start.elapsed());
    }
    Ok(())
}
