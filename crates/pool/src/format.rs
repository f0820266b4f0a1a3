//! What a class may tell the program that makes a filesystem: known words only, so that none of them can do harm.
use crate::{Content, error::PoolError};

/// Smallest size that `mkfs.xfs` makes, and that the kernel lets a btrfs have that is resized, in bytes.
const LEAST_XFS_BYTES: u64 = 300 << 20;
const LEAST_BTRFS_BYTES: u64 = 256 << 20;
/// Longest label that every filesystem can have, in bytes.
const LABEL_BYTES_MAX: usize = 12;

/// What the word after an option has to be.
enum Word {
    /// A number between these.
    Number(u64, u64),
    /// One of these.
    One(&'static [&'static str]),
    /// `name=NUMBER` with one of these names, several with commas between.
    Pairs(&'static [&'static str]),
    /// One or more of these, with commas between, each of which `^` may turn off.
    Switches(&'static [&'static str]),
    Label,
}

const EXT: &[(&str, Word)] = &[
    ("-b", Word::One(&["4096"])),
    ("-i", Word::Number(1024, 64 << 20)),
    ("-I", Word::One(&["128", "256", "512", "1024"])),
    ("-N", Word::Number(1, u32::MAX as u64)),
    ("-m", Word::Number(0, 50)),
    ("-J", Word::Pairs(&["size"])),
    ("-E", Word::Pairs(&["stride", "stripe_width", "lazy_itable_init", "lazy_journal_init"])),
    (
        "-O",
        Word::Switches(&[
            "fast_commit",
            "metadata_csum",
            "dir_index",
            "large_dir",
            "inline_data",
            "sparse_super2",
            "uninit_bg",
        ]),
    ),
    ("-T", Word::One(&["small", "big", "news", "largefile", "largefile4"])),
    ("-L", Word::Label),
];
const XFS: &[(&str, Word)] = &[
    ("-b", Word::Pairs(&["size"])),
    ("-i", Word::Pairs(&["size", "maxpct", "sparse"])),
    ("-m", Word::Pairs(&["crc", "finobt", "reflink", "rmapbt", "bigtime", "inobtcount"])),
    ("-n", Word::Pairs(&["size", "ftype"])),
    ("-L", Word::Label),
];
const BTRFS: &[(&str, Word)] = &[
    ("-n", Word::One(&["4096", "8192", "16384", "32768", "65536"])),
    ("-m", Word::One(&["single", "dup"])),
    ("-d", Word::One(&["single", "dup"])),
    ("-L", Word::Label),
];

impl Word {
    fn takes(&self, word: &str) -> bool {
        let number = |text: &str| !text.is_empty() && text.len() < 12 && text.bytes().all(|b| b.is_ascii_digit());
        match self {
            Self::Number(least, most) => number(word) && word.parse().is_ok_and(|n| (*least..=*most).contains(&n)),
            Self::One(known) => known.contains(&word),
            Self::Pairs(names) => word
                .split(',')
                .all(|pair| pair.split_once('=').is_some_and(|(name, value)| names.contains(&name) && number(value))),
            Self::Switches(known) => word.split(',').all(|one| known.contains(&one.strip_prefix('^').unwrap_or(one))),
            Self::Label => {
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
                (1..=LABEL_BYTES_MAX).contains(&word.len()) && word.bytes().all(good)
            }
        }
    }
}

fn known(kind: &str) -> &'static [(&'static str, Word)] {
    match kind {
        "xfs" => XFS,
        "btrfs" => BTRFS,
        _ => EXT,
    }
}

/// Judges the words that a class has for the program that makes a filesystem of this kind.
pub(crate) fn check(content: &Content, words: &[String]) -> Result<(), PoolError> {
    let Content::Filesystem(kind) = content else {
        return match words {
            [] => Ok(()),
            _ => Err(PoolError::Invalid("options for making a filesystem are given for a raw block device".into())),
        };
    };
    for pair in words.chunks(2) {
        let option = known(kind).iter().find(|(name, _)| *name == pair[0]);
        if !option.zip(pair.get(1)).is_some_and(|((_, takes), word)| takes.takes(word)) {
            let names: Vec<_> = known(kind).iter().map(|(name, _)| *name).collect();
            let why = format!(
                "{:?} is no option for making {kind} that is allowed here; there are {}, each with a value",
                pair.join(" "),
                names.join(", ")
            );
            return Err(PoolError::Invalid(why));
        }
    }
    Ok(())
}

/// The smallest volume that can have this, in bytes.
pub(crate) fn least_bytes(content: &Content) -> u64 {
    match content {
        Content::Filesystem(kind) if kind == "xfs" => LEAST_XFS_BYTES,
        Content::Filesystem(kind) if kind == "btrfs" => LEAST_BTRFS_BYTES,
        _ => 0,
    }
}

/// The package that people install for a kind of filesystem.
pub(crate) fn package(kind: &str) -> &'static str {
    match kind {
        "xfs" => "xfsprogs",
        "btrfs" => "btrfs-progs",
        _ => "e2fsprogs",
    }
}

#[test]
fn options_are_known_or_refused() {
    let judge = |kind: &str, text: &str| {
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        check(&Content::Filesystem(kind.into()), &words).is_ok()
    };
    for (kind, good) in [
        ("ext4", ""),
        ("ext4", "-i 8192 -m 1"),
        ("ext4", "-N 100000 -O fast_commit,^dir_index -J size=8 -L data_1"),
        ("ext3", "-I 256"),
        ("xfs", "-m reflink=1,crc=1 -i size=512,maxpct=10 -L a.b"),
        ("btrfs", "-m single -n 16384"),
    ] {
        assert!(judge(kind, good), "{kind} {good}");
    }
    for (kind, bad) in [
        ("ext4", "-i"),
        ("ext4", "-O ^has_journal"),
        ("ext4", "-d /etc"),
        ("ext4", "-N 1e9"),
        ("ext4", "-N 99999999999999999999"),
        ("ext4", "-m 51"),
        ("ext4", "-J device=/dev/vda"),
        ("ext4", "-E size=1,offset=5"),
        ("ext4", "-L -rf"),
        ("ext4", "--help x"),
        ("xfs", "-l logdev=/dev/vda"),
        ("xfs", "-p /etc/passwd"),
        ("xfs", "-m reflink"),
        ("btrfs", "-r /etc"),
    ] {
        assert!(!judge(kind, bad), "{kind} {bad}");
    }
    assert!(check(&Content::Block, &["-m".into(), "1".into()]).is_err());
}
