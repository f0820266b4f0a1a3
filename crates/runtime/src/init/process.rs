//! The last steps before a program runs, the same for a container's own program and for commands beside it.
use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{Gid, Uid},
};
use rustix::{
    fs::{OFlags, makedev},
    pty::OpenptFlags,
    thread::{CapabilitySet, CapabilitySets},
};

use super::lookup;
use crate::{
    caps, kernel,
    launch::{Identity, Process},
    seccomp,
};

/// A program's three standard descriptors.
pub(crate) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Whether they are a terminal that becomes the session's own.
    pub terminal: bool,
}

impl Stdio {
    pub(crate) fn terminal(slave: OwnedFd) -> io::Result<Self> {
        let (stdout, stderr) = (slave.try_clone()?, slave.try_clone()?);
        Ok(Self { stdin: slave, stdout, stderr, terminal: true })
    }
}

/// A new terminal of the container's own instance: `(master, slave)`.
pub(crate) fn open_terminal(root: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = lookup::open(root, "/dev/pts/ptmx".as_ref(), OFlags::RDWR | OFlags::NOCTTY)?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// Turns the calling process into the program. Returns only if that failed, with what went wrong, worded as other
/// runtimes do because clients show it.
pub(crate) fn become_program(process: &Process, identity: &Identity, stdio: &Stdio) -> String {
    match attempt(process, identity, stdio) {
        Ok(never) => match never {},
        Err(text) => text,
    }
}

fn attempt(process: &Process, identity: &Identity, stdio: &Stdio) -> Result<std::convert::Infallible, String> {
    let text = |action: &'static str| move |e: io::Error| format!("{action}: {e}");
    if stdio.terminal {
        kernel::set_controlling_terminal(stdio.stdin.as_fd()).map_err(text("set the controlling terminal"))?;
    }
    own_stdio(stdio, identity.uid);
    kernel::set_stdio(stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()).map_err(text("set stdio"))?;
    kernel::close_on_exec_from(3).map_err(text("close descriptors"))?;
    // As root first: the user may lack the right to walk there. As the user after: root may (root-squashed mounts).
    let arrived = rustix::process::chdir(process.cwd.as_str());
    let filter = seccomp::filter(&process.seccomp, process.capabilities)?;
    if let (Some(filter), false) = (&filter, process.no_new_privileges) {
        kernel::set_seccomp_filter(filter).map_err(text("install the system-call filter"))?;
    }
    take_identity(process, identity).map_err(text("take the container's user and capabilities"))?;
    if let Err(first) = arrived {
        rustix::process::chdir(process.cwd.as_str()).map_err(|_| {
            format!("chdir to cwd ({:?}) failed: {}", process.cwd, describe(Errno::from_raw(first.raw_os_error())))
        })?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|e| format!("set no_new_privs: {e}"))?;
        if let Some(filter) = &filter {
            kernel::set_seccomp_filter(filter).map_err(text("install the system-call filter"))?;
        }
    }
    kernel::reset_signals();
    exec(process, identity)
}

/// Lets a user other than root reopen its stdio by path (`/dev/stdout`). Best effort, as some descriptors refuse.
fn own_stdio(stdio: &Stdio, uid: u32) {
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let null = rustix::fs::fstat(fd).is_ok_and(|s| s.st_rdev == makedev(1, 3));
        if !null {
            let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

fn take_identity(process: &Process, identity: &Identity) -> io::Result<()> {
    for number in 0..caps::COUNT {
        let cap = CapabilitySet::from_bits_retain(1 << number);
        if process.capabilities & cap.bits() == 0 {
            match rustix::thread::remove_capability_from_bounding_set(cap) {
                // A kernel that does not know this one yet.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let groups: Vec<_> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups)?;
    let (gid, uid) = (Gid::from_raw(identity.gid), Uid::from_raw(identity.uid));
    nix::unistd::setresgid(gid, gid, gid)?;
    // Leaving user 0 empties the permitted set; the kernel does that here.
    nix::unistd::setresuid(uid, uid, uid)?;
    if uid.is_root() {
        // What the host itself lacks cannot be granted.
        let mine = rustix::thread::capabilities(None)?.permitted;
        let set = CapabilitySet::from_bits_retain(process.capabilities) & mine;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() },
        )?;
    }
    Ok(())
}

/// Gives up every capability, for a process that only has to exist.
pub(crate) fn drop_everything() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

fn exec(process: &Process, identity: &Identity) -> Result<std::convert::Infallible, String> {
    let Some(command) = process.args.first() else { return Err("no command specified".to_owned()) };
    let mut env = process.env.clone();
    if !env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        env.retain(|(name, _)| name != "HOME");
        env.push(("HOME".to_owned(), identity.home.clone()));
    }
    let search = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    let path = find(command, search)?;
    refuse_own_program(&path).map_err(|why| format!("exec: {command:?}: {why}"))?;
    let c = |text: String| CString::new(text).map_err(|_| format!("exec: {command:?}: invalid argument"));
    let path_c = c(path.to_string_lossy().into_owned())?;
    let args = process.args.iter().cloned().map(c).collect::<Result<Vec<_>, _>>()?;
    let vars = env.into_iter().map(|(name, value)| c(format!("{name}={value}"))).collect::<Result<Vec<_>, _>>()?;
    match nix::unistd::execve(&path_c, &args, &vars) {
        Ok(never) => Ok(never),
        Err(e) => Err(format!("exec {}: {}", path.display(), describe(e))),
    }
}

/// Keeps the container from running our own program, which it could reach as `/proc/self/exe` right now, also as a
/// script's interpreter: once it runs there, the container could write to the host's file.
fn refuse_own_program(path: &Path) -> Result<(), &'static str> {
    const REFUSED: &str = "permission denied";
    // Scripts may be interpreted by scripts; the kernel allows about this many.
    const SCRIPTS_MAX: usize = 6;
    let own = std::fs::metadata("/proc/self/exe").map_err(|_| REFUSED)?;
    let mut path = path.to_owned();
    for _ in 0..SCRIPTS_MAX {
        let Ok(meta) = std::fs::metadata(&path) else { return Ok(()) };
        if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) {
            return Err(REFUSED);
        }
        let mut head = [0; 256];
        let Ok(n) = File::open(&path).and_then(|mut f| f.read(&mut head)) else { return Ok(()) };
        let Some(line) = head[..n].strip_prefix(b"#!").and_then(|h| h.split(|b| *b == b'\n').next()) else {
            return Ok(());
        };
        let mut words = line.split(|b| matches!(b, b' ' | b'\t' | 0)).filter(|w| !w.is_empty());
        let Some(interpreter) = words.next() else { return Ok(()) };
        path = PathBuf::from(OsStr::from_bytes(interpreter));
    }
    Err(REFUSED)
}

/// The program's file, searched like a shell does, judged with the rights of the user it will run as.
fn find(command: &str, search: &str) -> Result<PathBuf, String> {
    let check = |path: &Path| -> Result<(), Errno> {
        let meta = std::fs::metadata(path).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO)))?;
        if meta.is_dir() {
            return Err(Errno::EISDIR);
        }
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)
    };
    if command.contains('/') {
        return match check(command.as_ref()) {
            Ok(()) => Ok(command.into()),
            Err(Errno::ENOENT) => Err(format!("exec: {command:?}: stat {command}: no such file or directory")),
            Err(e) => Err(format!("exec: {command:?}: {}", describe(e))),
        };
    }
    let mut denied = false;
    for dir in search.split(':').filter(|d| !d.is_empty() && !command.is_empty()) {
        let path = Path::new(dir).join(command);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {command:?}: {why}"))
}

/// The kernel's wording, in lower case as clients expect it.
fn describe(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

#[test]
fn programs_are_found_or_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).to_str().unwrap().to_owned();
    std::fs::write(at("plain"), "").unwrap();
    std::fs::copy("/bin/true", at("tool")).unwrap();
    std::fs::create_dir(at("dir")).unwrap();
    let search = format!("/nonexistent:{}", dir.path().display());
    assert_eq!(find("tool", &search).unwrap(), dir.path().join("tool"));
    assert_eq!(find("no-such", &search).unwrap_err(), r#"exec: "no-such": executable file not found in $PATH"#);
    assert_eq!(find("dir", &search).unwrap_err(), r#"exec: "dir": executable file not found in $PATH"#);
    assert_eq!(find("", &search).unwrap_err(), r#"exec: "": executable file not found in $PATH"#);
    assert_eq!(find("/no/such", "").unwrap_err(), r#"exec: "/no/such": stat /no/such: no such file or directory"#);
    assert_eq!(find(&at("plain"), "").unwrap_err(), format!(r#"exec: "{}": permission denied"#, at("plain")));
    assert_eq!(find(&at("dir"), "").unwrap_err(), format!(r#"exec: "{}": is a directory"#, at("dir")));
}

#[test]
fn our_own_program_is_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    for path in ["/proc/self/exe", "/proc/thread-self/exe"] {
        assert!(refuse_own_program(Path::new(path)).is_err(), "{path}");
        let inner = script("inner", &format!("#! {path} -x\n"));
        assert!(refuse_own_program(&inner).is_err(), "#!{path}");
        assert!(refuse_own_program(&script("outer", &format!("#!{}\n", inner.display()))).is_err(), "two deep");
    }
    for path in [Path::new("/bin/sh"), &script("fine", "#!/bin/sh\n"), &script("empty", ""), Path::new("/nonexistent")]
    {
        assert!(refuse_own_program(path).is_ok(), "{}", path.display());
    }
}
