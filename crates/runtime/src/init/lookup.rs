//! Paths inside a container's root. Whatever symbolic links the image holds, nothing here leaves that root.
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Largest `/etc/passwd` that is read, in bytes. The file comes with the image, so it may be anything.
const TEXT_MAX: u64 = 4 << 20;
/// Links to missing directories that are followed one after another.
const LINKS_MAX: u32 = 16;

/// Opens `path` as the container would see it. Retried when a rename elsewhere disturbs the walk.
pub(crate) fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = relative(path)?;
    let mut tries = 0;
    loop {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(root, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            other => return Ok(other?),
        }
    }
}

/// Drops the leading slash and refuses what has no place in a mount point.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(p) => out.push(p),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} contains '..'", path.display())));
            }
        }
    }
    if out.as_os_str().is_empty() {
        out.push(".");
    }
    Ok(out)
}

/// The directory `path`, made with its parents if missing.
pub(super) fn directory(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    make_directory(root, path, LINKS_MAX)
}

fn make_directory(root: &OwnedFd, path: &Path, links_left: u32) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = parent(root, path, links_left)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) if links_left > 0 => {
                    // A link to what does not exist, such as `/var/run -> /run` in a small image: make what it names.
                    if let Ok(link) = rustix::fs::readlinkat(&parent, name, Vec::new()) {
                        let link = PathBuf::from(OsStr::from_bytes(link.as_bytes()));
                        make_directory(root, &follow(path, &link), links_left - 1)?;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            open(root, path, OFlags::PATH | OFlags::DIRECTORY)
        }
        other => other,
    }
}

/// Where a link at `path` leads, seen from the root; it never leads above the root.
fn follow(path: &Path, link: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    let whole = path.parent().unwrap_or(Path::new("/")).join(link);
    for part in whole.components() {
        match part {
            Component::Normal(p) => out.push(p),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// The file `path` (of any type but directory), made empty with its parents if missing.
pub(super) fn file(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    make_file(root, path, LINKS_MAX)
}

fn make_file(root: &OwnedFd, path: &Path, links_left: u32) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = parent(root, path, links_left)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) => {}
                Err(Errno::EXIST) if links_left > 0 => {
                    if let Ok(link) = rustix::fs::readlinkat(&parent, name, Vec::new()) {
                        let link = PathBuf::from(OsStr::from_bytes(link.as_bytes()));
                        make_file(root, &follow(path, &link), links_left - 1)?;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            open(root, path, OFlags::PATH)
        }
        other => other,
    }
}

fn parent<'a>(root: &OwnedFd, path: &'a Path, links_left: u32) -> io::Result<(OwnedFd, &'a OsStr)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names nothing", path.display()));
    let name = path.file_name().ok_or_else(invalid)?;
    Ok((make_directory(root, path.parent().unwrap_or(Path::new("/")), links_left)?, name))
}

/// The text of a file of the image; empty if it is missing or unreadable.
pub(super) fn read_text(root: &OwnedFd, path: &str) -> String {
    let mut text = Vec::new();
    // Non-blocking: an image could hold a FIFO here.
    if let Ok(fd) = open(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) {
        let _ = File::from(fd).take(TEXT_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether the descriptor is a directory.
pub(super) fn is_directory(fd: &impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        let fd = rustix::fs::open(dir.path().join("root"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let (dir, fd) = root();
        let at = |p: &str| dir.path().join(p);
        symlink(at("outside"), at("root/absolute")).unwrap();
        symlink("../outside", at("root/relative")).unwrap();
        symlink("../../../../outside/x", at("root/dangling")).unwrap();
        for path in ["/absolute/new", "/relative/new", "/dangling/new", "/a/b/c"] {
            // Made inside, or refused: both are fine.
            let _ = directory(&fd, Path::new(path));
            let _ = file(&fd, &Path::new(path).join("file"));
        }
        assert_eq!(std::fs::read_dir(at("outside")).unwrap().count(), 0, "something was made outside");
        assert!(at("root/a/b/c/file").is_file());
        symlink("../run", at("root/etc/run")).unwrap();
        symlink("/loop", at("root/loop")).unwrap();
        symlink("/run/net/resolv.conf", at("root/etc/resolv.conf")).unwrap();
        file(&fd, Path::new("/etc/resolv.conf")).unwrap();
        assert!(at("root/run/net/resolv.conf").is_file(), "so it is for files");
        file(&fd, Path::new("/loop")).unwrap_err();
        directory(&fd, Path::new("/etc/run/secrets")).unwrap();
        assert!(at("root/run/secrets").is_dir(), "what a dangling link names is made");
        directory(&fd, Path::new("/loop/x")).unwrap_err();
    }

    #[test]
    fn parents_with_dots_are_refused() {
        let (_dir, fd) = root();
        assert_eq!(directory(&fd, Path::new("/etc/../x")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn odd_files_read_as_nothing() {
        let (dir, fd) = root();
        nix::unistd::mkfifo(&dir.path().join("root/etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read_text(&fd, "etc/passwd"), "");
        assert_eq!(read_text(&fd, "etc/group"), "");
    }
}
