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
}
