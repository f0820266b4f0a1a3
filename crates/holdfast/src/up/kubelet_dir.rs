//! The directory in which drivers of volumes find a kubelet's things, held by this process alone.
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use base::Layout;

use crate::{
    client::Error,
    errors::{Doing, said},
};

/// In the directory: the data directory whose pods it has. Somebody else's pods would be taken for ours, and removed.
const OWNER: &str = "holdfast";
/// In the data directory: where its pods are.
const PLACE: &str = "kubelet-dir";

/// Makes the directory that was asked for, or the one in the data directory, and takes it. It is held as long as the
/// file that is given back.
pub fn take(layout: Layout, asked: Option<&Path>) -> Result<(Layout, File), Error> {
    let layout = match asked {
        None => layout,
        Some(dir) => {
            make(dir)?;
            let what = || format!("find the kubelet directory {}", dir.display());
            layout.with_kubelet(dir.canonicalize().doing(what)?)
        }
    };
    let dir = layout.kubelet();
    for dir in [dir, &dir.join("plugins"), &dir.join("plugins_registry")] {
        make(dir)?;
    }
    let lock = File::open(dir).doing(|| format!("open the kubelet directory {}", dir.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let dir = dir.display();
            return said(format!(
                "the kubelet directory {dir} is in use by another holdfast; choose another --kubelet-dir"
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).doing(|| format!("take the kubelet directory {}", dir.display()))?;
        }
    }
    check_owner(&layout)?;
    check_place(&layout)?;
    Ok((layout, lock))
}

/// The layout of a data directory that has been used, with its kubelet's things where the last start had them.
pub fn find(layout: Layout) -> Result<Layout, Error> {
    let known = read(&layout.root().join(PLACE))?;
    Ok(match known {
        Some(dir) => layout.with_kubelet(dir),
        None => layout,
    })
}

fn make(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(dir);
    let what = || {
        let dir = dir.display();
        format!(
            "make the kubelet directory {dir}; check its permissions and free space, or choose another with --kubelet-dir"
        )
    };
    Ok(made.doing(what)?)
}

/// What a file of ours says; `None` where there is none.
fn read(path: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(PathBuf::from(text.trim_end_matches('\n')))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| format!("read {}", path.display()))?,
    }
}

fn write(path: &Path, value: &Path) -> Result<(), Error> {
    Ok(fs::write(path, format!("{}\n", value.display()))
        .doing(|| format!("write {}; check its permissions and free space", path.display()))?)
}

fn has_pods(kubelet: &Path) -> bool {
    fs::read_dir(kubelet.join("pods")).is_ok_and(|mut pods| pods.next().is_some())
}

/// The directory inside the data directory, which is whosever that is: it is moved and copied with it.
fn own(layout: &Layout) -> PathBuf {
    Layout::new(layout.root()).kubelet().to_owned()
}

fn check_owner(layout: &Layout) -> Result<(), Error> {
    let (dir, owner) = (layout.kubelet(), layout.kubelet().join(OWNER));
    let known = read(&owner)?;
    if dir == own(layout) || known.as_deref() == Some(layout.root()) {
        return Ok(());
    }
    if has_pods(dir) {
        let whose = known.map_or("a kubelet".into(), |data| format!("the data directory {}", data.display()));
        let dir = dir.display();
        return said(format!("{dir} has pods of {whose}; choose another --kubelet-dir"));
    }
    write(&owner, layout.root())
}

fn check_place(layout: &Layout) -> Result<(), Error> {
    let place = layout.root().join(PLACE);
    let known = read(&place)?;
    let last = known.clone().unwrap_or_else(|| own(layout));
    if last == layout.kubelet() {
        return Ok(());
    }
    if has_pods(&last) {
        let last = last.display();
        return said(format!(
            "pods of this data directory have their volumes below {last}; start with --kubelet-dir {last}"
        ));
    }
    if layout.kubelet() == own(layout) {
        return Ok(fs::remove_file(&place).doing(|| format!("remove {}", place.display()))?);
    }
    write(&place, layout.kubelet())
}

#[test]
fn pods_of_others_are_left_alone() {
    let scratch = tempfile::tempdir().expect("a directory");
    let at = |name: &str| scratch.path().join(name);
    let (ours, theirs, kubelet) = (Layout::new(at("ours")), Layout::new(at("theirs")), at("kubelet"));
    for layout in [&ours, &theirs] {
        fs::create_dir(layout.root()).expect("made");
    }
    let (layout, lock) = take(ours.clone(), Some(&kubelet)).expect("free");
    assert_eq!(layout.pods(), kubelet.canonicalize().expect("there").join("pods"));
    let refused = |taken: Result<(Layout, File), Error>| taken.map(drop).expect_err("not ours").to_string();
    assert!(refused(take(theirs.clone(), Some(&kubelet))).contains("in use by another holdfast"));
    drop(lock);
    fs::create_dir_all(kubelet.join("pods/uid")).expect("made");
    assert!(refused(take(theirs.clone(), Some(&kubelet))).contains("has pods of the data directory"));
    assert!(refused(take(ours.clone(), None)).contains("start with --kubelet-dir"));
    fs::remove_file(kubelet.join(OWNER)).expect("removed");
    assert!(refused(take(theirs.clone(), Some(&kubelet))).contains("has pods of a kubelet"));
    fs::remove_dir(kubelet.join("pods/uid")).expect("removed");
    assert!(take(theirs, Some(&kubelet)).is_ok());
    assert_eq!(find(Layout::new(at("theirs"))).expect("read").kubelet(), kubelet.canonicalize().expect("there"));
    assert!(take(ours, None).is_ok());
    assert_eq!(find(Layout::new(at("ours"))).expect("read").kubelet(), at("ours/kubelet"));
}
