//! The end of a log that may be spread over rotated files: `0.log`, `0.log.20260102-030405`.
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

const BLOCK: usize = 64 * 1024;

/// All files of a log, oldest first; the live one is last.
pub fn files(log: &Path) -> Vec<PathBuf> {
    let name = log.file_name().map(|n| format!("{}.", n.to_string_lossy())).unwrap_or_default();
    let mut old: Vec<PathBuf> = log
        .parent()
        .and_then(|d| fs::read_dir(d).ok())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name)))
        .collect();
    old.sort();
    old.push(log.to_owned());
    old
}

/// Offset in the file from which on `lines` lines follow; counts how many there really are.
fn offset_of_last(file: &mut File, lines: usize) -> io::Result<(u64, usize)> {
    let size = file.seek(SeekFrom::End(0))?;
    let (mut at, mut seen) = (size, 0);
    let mut block = vec![0; BLOCK];
    while at > 0 {
        let length = usize::try_from(at).unwrap_or(BLOCK).min(BLOCK);
        at -= length as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut block[..length])?;
        for i in (0..length).rev() {
            let end = at + i as u64 + 1;
            // The line feed at the very end closes the last line and begins none.
            if block[i] == b'\n' && end < size {
                seen += 1;
                if seen == lines {
                    return Ok((end, seen));
                }
            }
        }
    }
    Ok((0, seen + usize::from(size > 0)))
}

/// Where to start reading to get the last `lines` lines: the file (an index into [`files`]) and the offset in it.
pub fn start_of_last(files: &[PathBuf], lines: usize) -> io::Result<(usize, u64)> {
    let last = files.len().saturating_sub(1);
    let mut left = lines;
    for (i, path) in files.iter().enumerate().rev() {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if left == 0 {
            return Ok((i, file.seek(SeekFrom::End(0))?));
        }
        let (offset, found) = offset_of_last(&mut file, left)?;
        if found >= left || i == 0 {
            return Ok((i, offset));
        }
        left -= found;
    }
    Ok((last, 0))
}

/// The last lines of one log, raw.
pub fn last_lines(log: &Path, lines: usize) -> io::Result<Vec<Vec<u8>>> {
    let files = files(log);
    let (first, offset) = start_of_last(&files, lines)?;
    let mut all = Vec::new();
    for (i, path) in files.iter().enumerate().skip(first) {
        let Ok(mut file) = File::open(path) else { continue };
        file.seek(SeekFrom::Start(if i == first { offset } else { 0 }))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        all.extend(bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_tail_is_the_tail_wherever_files_were_cut(total in 0usize..40, cuts in prop::collection::vec(0usize..40, 0..3),
                wanted in 0usize..50, long in prop::bool::ANY) {
            let dir = tempfile::tempdir().expect("a directory");
            let log = dir.path().join("0.log");
            let pad = if long { "x".repeat(BLOCK / 3) } else { String::new() };
            let lines: Vec<String> = (0..total).map(|i| format!("{i}{pad}")).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(total)).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for (n, cut) in cuts.iter().chain([&total]).enumerate() {
                let name = if n == cuts.len() { "0.log".to_owned() } else { format!("0.log.2026010{n}-000000") };
                let text: String = lines[from..*cut].iter().map(|l| format!("{l}\n")).collect();
                fs::write(dir.path().join(name), text).expect("written");
                from = *cut;
            }
            let got = last_lines(&log, wanted).expect("readable");
            let want: Vec<Vec<u8>> = lines[total.saturating_sub(wanted)..].iter().map(|l| l.clone().into_bytes()).collect();
            prop_assert_eq!(got, want);
        }
    }
}
