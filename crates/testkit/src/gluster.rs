//! A client of GlusterFS that mounts memory: as a script for the real kernel, and played for the fake one.
use std::{io, path::Path};

use sys::{FakeSys, Program, Ran, Sys, Tmpfs};
use volumes::GlusterVolume;

/// Its file, below the node's.
pub const CLIENT: &str = "glusterfs";

/// A volume with nothing special about it.
pub fn volume() -> GlusterVolume {
    GlusterVolume {
        servers: vec!["192.0.2.1".into()],
        endpoints: ("ns".into(), "servers".into()),
        path: "vol".into(),
        read_only: false,
        mount_options: Vec::new(),
    }
}

/// The text of the client's file: it mounts at its last argument, and lives until it is ended.
pub fn script() -> &'static str {
    "#!/bin/sh\nfor at; do :; done\nmount -t tmpfs none \"$at\" && exec sleep 600\n"
}

/// What the client does on the fake kernel.
pub(crate) fn play(fake: &FakeSys, program: &Program<'_>) -> io::Result<Ran> {
    let at = program.arguments.last().ok_or(io::ErrorKind::InvalidInput)?;
    fake.pause();
    let mounted =
        fake.open(Path::new(at)).and_then(|at| fake.mount_tmpfs(&at, &Tmpfs { size_bytes: None, mode: 0o755 }));
    fake.resume();
    mounted.map(|()| Ran::default())
}
