//! The process that becomes QEMU's storage daemon.
use std::{
    io::{self, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{KEEPER, Outcome, Wish, tell};

const DAEMON: &str = "qemu-storage-daemon";
/// There is no search path here.
const DIRECTORIES: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];

pub(crate) fn main(dir: &Path) -> io::Result<()> {
    // Paths below it can be longer than some interfaces take.
    std::env::set_current_dir(dir)?;
    let mut wish = Vec::new();
    io::stdin().read_to_end(&mut wish)?;
    // Refused here, where its words can still be said.
    let _: Wish = serde_json::from_slice(&wish)?;
    let Some(daemon) = DIRECTORIES.map(|d| PathBuf::from(d).join(DAEMON)).into_iter().find(|file| file.is_file())
    else {
        return tell(&Outcome::Unable { why: format!("{DAEMON} is not installed") });
    };
    let (mut ours, theirs) = UnixStream::pair()?;
    // The keeper's first line; what follows is said by the daemon.
    wish.push(b'\n');
    Command::new("/proc/self/exe")
        .arg0(KEEPER)
        .arg(dir)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()?;
    ours.write_all(&wish)?;
    let said = std::os::fd::OwnedFd::from(ours.try_clone()?);
    let error = Command::new(&daemon)
        .args(["--chardev", "stdio,id=keeper,signal=off", "--monitor", "chardev=keeper"])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(ours)))
        .stdout(Stdio::from(said))
        .exec();
    tell(&Outcome::Unable { why: format!("{} cannot be run: {error}", daemon.display()) })
}
