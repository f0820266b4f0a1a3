//! Two FlexVolume drivers: one that mounts for each pod, one that attaches and mounts once for all. As scripts for the real
//! kernel, and played for the fake one.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use sys::{Bind, FakeSys, Program, Ran, Sys, Unmount};
use volumes::{FlexVolume, PodOf};

use crate::{gluster, plugin_suite};

/// Mounts for each pod.
pub const PLAIN: &str = "example.com/plain";
/// Attaches, and leaves it to the node to show pods what it mounted once.
pub const SHARED: &str = "example.com/shared";

/// Where the drivers are, below the node's files.
pub fn dir(host: &Path) -> PathBuf {
    host.join("flex")
}

/// What is attached, below the node's files.
pub fn attached(host: &Path) -> PathBuf {
    host.join("attached")
}

/// The directory that both drivers mount.
pub const DATA: &str = "flex-data";

/// A volume with nothing special about it.
pub fn volume(driver: &str) -> FlexVolume {
    FlexVolume {
        driver: driver.into(),
        name: "vol".into(),
        persistent: true,
        fs_type: String::new(),
        read_only: false,
        options: [("size".to_owned(), "1".to_owned())].into(),
        secret: None,
        pod: PodOf::default(),
        node: "here".into(),
        has_bytes: 1,
    }
}

/// The drivers' files, relative to [`dir`], with their text.
pub fn scripts(host: &Path) -> [(&'static str, String); 2] {
    let script = |attach: bool, verb: &str| {
        format!(
            "#!/bin/sh\nok='{{\"status\": \"Success\"}}'\ncase $1 in\n\
             init) echo '{{\"status\": \"Success\", \"capabilities\": {{\"attach\": {attach}}}}}' ;;\n\
             attach) : > {}/vol; echo '{{\"status\": \"Success\", \"device\": \"\"}}' ;;\n\
             detach) rm -f {}/$2; echo $ok ;;\n\
             {verb}) mount --bind {}/{DATA} \"$2\"; echo $ok ;;\n\
             un{verb}) umount \"$2\"; echo $ok ;;\n\
             *) echo '{{\"status\": \"Not supported\"}}'; exit 1 ;;\nesac\n",
            attached(host).display(),
            attached(host).display(),
            host.display()
        )
    };
    [("example.com~plain/plain", script(false, "mount")), ("example.com~shared/shared", script(true, "mountdevice"))]
}

/// Lets the fake kernel have the drivers, and the client of GlusterFS.
pub fn play(fake: &Arc<FakeSys>, host: &Path) {
    let (kernel, host) = (Arc::downgrade(fake), host.to_path_buf());
    fake.with_programs(move |program| match plugin_suite::cloned(program) {
        Some(cloned) => Ok(cloned),
        None => answer(&kernel, &host, program),
    });
}

fn answer(kernel: &Weak<FakeSys>, host: &Path, program: &Program<'_>) -> io::Result<Ran> {
    let fake = kernel.upgrade().ok_or(io::ErrorKind::NotFound)?;
    if program.path.ends_with(gluster::CLIENT) {
        return gluster::play(&fake, program);
    }
    fake.pause();
    let said = act(&fake, host, program);
    fake.resume();
    let (status, text) = match said? {
        Some(text) => (0, text),
        None => (1, r#"{"status": "Not supported"}"#.to_owned()),
    };
    Ok(Ran { status: Some(status), output: text.into_bytes(), errors: Vec::new() })
}

fn act(fake: &FakeSys, host: &Path, program: &Program<'_>) -> io::Result<Option<String>> {
    let argument = |nth: usize| program.arguments.get(nth).map(OsStr::new).unwrap_or_default();
    let shared = program.path.ends_with("shared");
    let done = || Ok(Some(r#"{"status": "Success"}"#.to_owned()));
    let at = Path::new(argument(1));
    let records = || fake.open(&attached(host));
    match (argument(0).to_str().unwrap_or_default(), shared) {
        ("init", _) => Ok(Some(format!(r#"{{"status": "Success", "capabilities": {{"attach": {shared}}}}}"#))),
        ("attach", true) => match fake.write_new(&records()?, OsStr::new("vol"), b"", 0o600) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => done(),
        },
        ("detach", true) => match fake.remove_file(&records()?, argument(1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => done(),
        },
        ("mount", false) | ("mountdevice", true) => {
            fake.bind(&fake.open(&host.join(DATA))?, &fake.open(at)?, &Bind::default())?;
            done()
        }
        ("unmount", false) | ("unmountdevice", true) => {
            let above = fake.open(at.parent().unwrap_or(at))?;
            if fake.stat(&fake.open(at)?)?.mount_root {
                fake.unmount(&above, at.file_name().unwrap_or_default(), Unmount::Strict)?;
            }
            done()
        }
        _ => Ok(None),
    }
}
