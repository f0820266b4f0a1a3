//! Reading `/proc/*/mountinfo`.
use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// Mount points at and below `top`, relative to it, deepest and newest first.
///
/// The kernel writes blanks, tabs, newlines and backslashes of a path as three octal digits.
pub(crate) fn points_below(text: &[u8], top: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(usize, usize, PathBuf)> = text
        .split(|b| *b == b'\n')
        .enumerate()
        .filter_map(|(line, text)| {
            let field = text.split(|b| *b == b' ').nth(4)?;
            let point = PathBuf::from(OsString::from_vec(unescape(field)));
            let below = point.strip_prefix(top).ok()?.to_path_buf();
            Some((below.components().count(), line, below))
        })
        .collect();
    found.sort_by_key(|f| std::cmp::Reverse((f.0, f.1)));
    found.into_iter().map(|f| f.2).collect()
}

/// All mount points, those that something is mounted on before what is.
pub(crate) fn points(text: &[u8]) -> Vec<PathBuf> {
    let mut all = points_below(text, Path::new("/"));
    all.reverse();
    all.dedup();
    all.into_iter().map(|below| Path::new("/").join(below)).collect()
}

/// Whether the filesystem of that device is mounted and takes no writes, whichever of its mounts they come to.
pub(crate) fn filesystem_is_read_only(text: &[u8], device: u64) -> bool {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut mounts = text
        .split(|b| *b == b'\n')
        .filter(|line| line.split(|b| *b == b' ').nth(2).is_some_and(|of| of == number.as_bytes()));
    // All mounts of a filesystem say the same of it, at the end of their lines.
    let options = mounts.next().and_then(|line| line.rsplit(|b| *b == b' ').next());
    options.is_some_and(|all| all.split(|b| *b == b',').any(|one| one == b"ro"))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[test]
fn finds_escaped_and_stacked_points_deepest_first() {
    let text = b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /p rw - tmpfs a rw\n3 2 0:2 / /p/a\\040b rw - tmpfs a rw\n\
        4 3 0:3 / /p/a\\040b rw - tmpfs a rw\n5 4 0:4 / /p/a\\040b/c\\134d rw - tmpfs a rw\n6 1 0:5 / /pq rw - tmpfs a rw\n";
    let paths: Vec<_> = ["a b/c\\d", "a b", "a b", ""].into_iter().map(PathBuf::from).collect();
    assert_eq!(points_below(text, Path::new("/p")), paths);
    assert_eq!(points_below(text, Path::new("/")).len(), 6);
    assert!(points_below(text, Path::new("/p/a")).is_empty());
    assert_eq!(points(text), ["/", "/p", "/pq", "/p/a b", "/p/a b/c\\d"].map(PathBuf::from));
}

#[test]
fn a_filesystem_is_read_only_whatever_its_mounts_are() {
    let text = b"1 0 7:3 / /a ro,relatime shared:1 - ext4 /dev/loop3 rw,discard\n2 0 7:4 / /b rw - ext4 /dev/loop4 ro,discard\n";
    let of = |minor| filesystem_is_read_only(text, rustix::fs::makedev(7, minor));
    assert_eq!((of(3), of(4), of(5)), (false, true, false));
}
