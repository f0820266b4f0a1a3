//! Mounts an export as a pod's volume would be, uses it, and unmounts it: `mount_nfs SERVER PATH [OPTION...]`.
//!
//! For machines on which nothing else of this program runs. By which client, and with which version, is what it prints.
use std::{error::Error, fs, path::Path, process::ExitCode, sync::Arc};

use volumes::{NfsSource, Ownership, PodVolumes, Resolved, Source};

fn main() -> ExitCode {
    // The embedded client is this program started again.
    if let Some(code) = nfs::maybe_serve() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mount_nfs: {error}");
            let mut next = error.source();
            while let Some(error) = next {
                eprintln!("  because {error}");
                next = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(server), Some(path)) = (args.next(), args.next()) else {
        return Err("usage: mount_nfs SERVER PATH [OPTION...]".into());
    };
    let source = NfsSource { server, path, read_only: false, mount_options: args.collect() };
    let resolved = Resolved { source: Source::Nfs(Box::new(source)), read_only: false, mount_options: Vec::new() };
    let pods = std::env::temp_dir().join(format!("mount-nfs-{}", std::process::id()));
    let volumes = PodVolumes::new(pods.join("pods"), Arc::new(sys::RealSys));
    let used = volumes
        .set_up("pod", "volume", &resolved, &Ownership::default())
        .map_err(Box::<dyn Error>::from)
        .and_then(|ready| use_it(&ready.host_path));
    volumes.tear_down("pod")?;
    fs::remove_dir_all(&pods)?;
    used
}

fn use_it(at: &Path) -> Result<(), Box<dyn Error>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let point = format!(" {} ", at.display());
    let line = table.lines().find(|l| l.contains(&point)).ok_or("it is not mounted")?;
    println!("mounted: {}", line.split_once(" - ").map_or(line, |(_, how)| how));
    let (dir, data) = (at.join(format!("mount-nfs-{}", std::process::id())), vec![0x5a; 3 << 20]);
    fs::create_dir(&dir)?;
    fs::write(dir.join("made"), &data)?;
    fs::rename(dir.join("made"), dir.join("renamed"))?;
    if fs::read(dir.join("renamed"))? != data {
        return Err("what was read is not what was written".into());
    }
    let names = fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>()?;
    if names.len() != 1 {
        return Err(format!("{} names instead of one", names.len()).into());
    }
    fs::remove_file(dir.join("renamed"))?;
    fs::remove_dir(&dir)?;
    println!("written, read, renamed, listed, removed");
    Ok(())
}
