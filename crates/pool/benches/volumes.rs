//! What a volume costs: writes that are made durable, against a plain directory of the same disk; and its life.
//! `cargo xtask bench volumes [DIR] [ROUNDS]` runs it (root). DIR lies on the disk that is measured.
//!
//! All that is compared is measured in turns, round by round; the best of each is what the machine can do when nobody
//! disturbs it.
use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use pool::{Backend, Content, NewSnapshot, NewVolume, Origin, Pool, Publish, Stage};
use sys::{Access, Disk, RealSys};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Size of the file that is written over, in blocks.
const BLOCKS: u64 = 64 * MIB / BLOCK as u64;
const ROUNDS: usize = 20;
const TURN: Duration = Duration::from_millis(300);
/// How often a life is measured.
const LIVES: usize = 20;
/// What is in the volume whose copies are measured, in MiB.
const FILLED_MIB: u64 = 512;

/// Scratch space that goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a failed measurement left.
        let ways = (0..ways().len()).flat_map(|n| [format!("published{n}"), format!("staged{n}")]);
        for name in ways.chain(["published", "staged", "below"].map(str::to_owned)) {
            if self.path(&name).exists() {
                let _ = Command::new("umount").arg("-q").arg(self.path(&name)).stderr(Stdio::null()).status();
            }
        }
        if let Ok(Some(device)) = RealSys.attached(&self.path("disk"), Access::Write) {
            let _ = RealSys.detach(&device);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One way to have a place for files.
struct Way {
    name: &'static str,
    /// `None`: the plain directory.
    volume: Option<NewVolume>,
}

fn volume(kind: &str, words: &[&str], backend: Backend) -> NewVolume {
    NewVolume {
        name: "bench".into(),
        required_bytes: GIB,
        limit_bytes: 0,
        backend,
        content: Content::Filesystem(kind.into()),
        format: words.iter().map(|w| (*w).to_owned()).collect(),
        limit_required: false,
        origin: None,
        shares_room: true,
        notes: Default::default(),
    }
}

fn ways() -> Vec<Way> {
    let image = |name, kind: &str, words: &[&str]| Way { name, volume: Some(volume(kind, words, Backend::Image)) };
    let mut all = vec![
        Way { name: "plain directory", volume: None },
        Way { name: "`backend=directory`", volume: Some(volume("ext4", &[], Backend::Directory)) },
        image("`backend=image`, ext4 (default)", "ext4", &[]),
        image("`backend=image`, ext4, `-O fast_commit`", "ext4", &["-O", "fast_commit"]),
    ];
    if RealSys.can_format("xfs") {
        all.push(image("`backend=image`, xfs", "xfs", &[]));
    }
    all
}

fn up(pool: &Pool, scratch: &Scratch, new: &NewVolume, which: &str) -> Result<pool::Id> {
    let id = pool.create(new)?.id;
    let (staged, published) = (scratch.path(&format!("staged{which}")), scratch.path(&format!("published{which}")));
    pool.stage(&id, &Stage { at: &staged, options: &[] })?;
    pool.publish(&id, &Publish { staged: &staged, at: &published, read_only: false, alone: false })?;
    Ok(id)
}

fn down(pool: &Pool, scratch: &Scratch, id: &pool::Id, which: &str) -> Result<()> {
    pool.unpublish(id, &scratch.path(&format!("published{which}")))?;
    pool.unstage(id, &scratch.path(&format!("staged{which}")))?;
    Ok(())
}

/// Numbers that look random and are the same every time.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// What a block device was asked since the start, by its `stat` file: writes, and flushes of its cache.
#[derive(Clone, Copy)]
struct Asked([f64; 2]);

impl Asked {
    /// Of the disk that a directory is on; nothing where that is no block device.
    fn of(dir: &Path) -> Option<Self> {
        let number = rustix::fs::stat(dir).ok()?.st_dev;
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        let field = |at: usize| text.split_whitespace().nth(at)?.parse().ok();
        Some(Self([field(4)?, field(15)?]))
    }
}

/// What one kind of durable write costs.
#[derive(Clone, Default)]
struct Cost {
    per_second: f64,
    /// Writes and flushes of the disk for each, its own and what others asked meanwhile.
    disk: Option<[f64; 2]>,
}

/// A file of [`BLOCKS`] that were all written before.
fn filled(dir: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(dir.join("file"))?;
    let chunk = vec![0x5a; MIB as usize];
    for at in (0..BLOCKS * BLOCK as u64).step_by(MIB as usize) {
        file.write_all_at(&chunk, at)?;
    }
    file.sync_all()?;
    rustix::fs::syncfs(&file)?;
    Ok(file)
}

/// Blocks that are written and made durable one after the other: over a file, and at the end of another one.
fn writes(file: &File, dir: &Path, disk: &Path) -> Result<[Cost; 2]> {
    let block = [0xa5; BLOCK];
    let mut state = 1;
    let over = per_second(disk, |_| {
        file.write_all_at(&block, next(&mut state) % BLOCKS * BLOCK as u64)?;
        Ok(file.sync_all()?)
    })?;
    let path = dir.join("growing");
    let growing = File::create(&path)?;
    growing.sync_all()?;
    let at_end = per_second(disk, |n| {
        growing.write_all_at(&block, n * BLOCK as u64)?;
        Ok(growing.sync_all()?)
    })?;
    fs::remove_file(path)?;
    rustix::fs::syncfs(file)?;
    Ok([over, at_end])
}

fn per_second(disk: &Path, mut act: impl FnMut(u64) -> Result<()>) -> Result<Cost> {
    let before = Asked::of(disk);
    let (started, mut done) = (Instant::now(), 0);
    while started.elapsed() < TURN {
        act(done)?;
        done += 1;
    }
    let per_second = done as f64 / started.elapsed().as_secs_f64();
    let disk = before.zip(Asked::of(disk)).map(|(a, b)| [0, 1].map(|at| (b.0[at] - a.0[at]) / done as f64));
    Ok(Cost { per_second, disk })
}

/// All costs of one way, round by round; for writes over a file and at its end.
type Rounds = [Vec<Cost>; 2];

fn durable_writes(pool: &Pool, scratch: &Scratch, rounds: usize) -> Result<()> {
    let ways = ways();
    let mut places = Vec::new();
    for (number, way) in ways.iter().enumerate() {
        let number = number.to_string();
        let (id, dir) = match &way.volume {
            None => (None, scratch.path("plain")),
            Some(new) => {
                let new = NewVolume { name: format!("bench{number}"), ..new.clone() };
                (Some(up(pool, scratch, &new, &number)?), scratch.path(&format!("published{number}")))
            }
        };
        fs::create_dir_all(&dir)?;
        places.push((id, filled(&dir)?, dir));
    }
    let mut all: Vec<Rounds> = vec![Rounds::default(); ways.len()];
    for _ in 0..rounds {
        for ((_, file, dir), rounds) in places.iter().zip(&mut all) {
            for (cost, rounds) in writes(file, dir, &scratch.0)?.into_iter().zip(rounds) {
                rounds.push(cost);
            }
        }
    }
    for (number, (id, file, _)) in places.into_iter().enumerate() {
        drop(file);
        if let Some(id) = id {
            down(pool, scratch, &id, &number.to_string())?;
            pool.delete(&id)?;
        }
    }
    pool.empty_trash(u64::MAX)?;
    for (what, title) in ["over a file", "at the end of a file"].iter().enumerate() {
        println!(
            "| durable writes of 4 KiB {title} | per second, best | ratio | median | ratio | disk writes | flushes |"
        );
        println!("|---|---|---|---|---|---|");
        let best = |rounds: &Rounds| rounds[what].iter().map(|cost| cost.per_second).fold(0.0, f64::max);
        for (way, rounds) in ways.iter().zip(&all) {
            let plain = &all[0][what];
            let ratios = rounds[what].iter().zip(plain).map(|(a, b)| a.per_second / b.per_second);
            let (half, half_ratio) = (median(rounds[what].iter().map(|c| c.per_second)), median(ratios));
            // What others did to the disk is in all of them, least in the least.
            let least = |at: usize| {
                let figures = rounds[what].iter().filter_map(|cost| cost.disk).map(|disk| disk[at]);
                figures.min_by(f64::total_cmp).map_or_else(|| "?".to_owned(), |least| format!("{least:.2}"))
            };
            let (best, ratio) = (best(rounds), best(rounds) / best(&all[0]));
            let (writes, flushes) = (least(0), least(1));
            println!("| {} | {best:.0} | {ratio:.2} | {half:.0} | {half_ratio:.2} | {writes} | {flushes} |", way.name);
        }
        println!();
    }
    Ok(())
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = figures.collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn timed<T>(times: &mut Vec<Duration>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = act()?;
    times.push(started.elapsed());
    Ok(result)
}

fn row(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    if let (Some(least), Some(most)) = (times.first(), times.last()) {
        println!("| {what} | {:.1} ms | {:.1}–{:.1} ms |", ms(times[times.len() / 2]), ms(*least), ms(*most));
    }
}

fn life(pool: &Pool, scratch: &Scratch, kind: &str) -> Result<()> {
    let new = volume(kind, &[], Backend::Image);
    let mut times = vec![Vec::new(); 5];
    for _ in 0..LIVES {
        let id = timed(&mut times[0], || Ok(pool.create(&new)?))?.id;
        timed(&mut times[1], || up(pool, scratch, &new, ""))?;
        timed(&mut times[2], || down(pool, scratch, &id, ""))?;
        timed(&mut times[3], || up(pool, scratch, &new, ""))?;
        down(pool, scratch, &id, "")?;
        timed(&mut times[4], || {
            pool.delete(&id)?;
            Ok(pool.empty_trash(u64::MAX)?)
        })?;
    }
    let names = [
        "create",
        "first stage (makes the filesystem) and publish",
        "unpublish and unstage",
        "later stage (checks the filesystem) and publish",
        "delete, and empty the trash",
    ];
    for (what, times) in names.iter().zip(&mut times) {
        row(&format!("{kind}, 1 GiB: {what}"), times);
    }
    Ok(())
}

/// Snapshots and clones of a volume that is in use, on the filesystem that the pool is on.
fn copies(pool: &Pool, scratch: &Scratch, on: &str, backend: Backend) -> Result<()> {
    let id = up(pool, scratch, &volume("ext4", &[], backend), "")?;
    let mut file = File::create(scratch.path("published/fill"))?;
    let chunk = vec![7; MIB as usize];
    for _ in 0..FILLED_MIB {
        std::io::Write::write_all(&mut file, &chunk)?;
    }
    file.sync_all()?;
    drop(file);
    let mut times = vec![Vec::new(); 2];
    for number in 0..LIVES / 4 {
        let wanted = NewSnapshot { name: format!("s{number}"), volume: id.clone() };
        let snapshot = timed(&mut times[0], || Ok(pool.take_snapshot(&wanted)?))?;
        let origin = Some(Origin::Snapshot(snapshot.id.clone()));
        let copy = NewVolume { name: format!("c{number}"), origin, ..volume("ext4", &[], backend) };
        let copy = timed(&mut times[1], || Ok(pool.create(&copy)?))?;
        pool.delete(&copy.id)?;
        pool.delete_snapshot(&snapshot.id)?;
        pool.empty_trash(u64::MAX)?;
    }
    down(pool, scratch, &id, "")?;
    pool.delete(&id)?;
    pool.empty_trash(u64::MAX)?;
    row(&format!("{on}: snapshot of a volume in use with {FILLED_MIB} MiB"), &mut times[0]);
    row(&format!("{on}: volume from that snapshot"), &mut times[1]);
    Ok(())
}

/// The same on a filesystem that shares blocks, in an image of its own.
fn copies_on(scratch: &Scratch, kind: &str) -> Result<()> {
    if !RealSys.can_format(kind) {
        println!("| pool on {kind} | mkfs.{kind} is not installed | |");
        return Ok(());
    }
    let (disk, below) = (scratch.path("disk"), scratch.path("below"));
    RealSys.make_image(&disk, 4 * GIB)?;
    let device = RealSys.attach(&disk, Access::Write)?;
    RealSys.format(&device, kind, &[])?;
    fs::create_dir_all(&below)?;
    if !Command::new("mount").arg(&device).arg(&below).status()?.success() {
        return Err(format!("cannot mount {}", device.display()).into());
    }
    {
        let pool = Pool::open(&below.join("pool"), Arc::new(RealSys))?;
        copies(&pool, scratch, &format!("pool on {kind}, images"), Backend::Image)?;
        if kind == "btrfs" {
            copies(&pool, scratch, "pool on btrfs, subvolumes", Backend::Subvolume)?;
        }
    }
    Command::new("umount").arg(&below).status()?;
    RealSys.detach(&device)?;
    fs::remove_file(disk)?;
    Ok(())
}

fn run() -> Result<()> {
    // cargo adds a word of its own.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let above = words.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds = words.next().map_or(Ok(ROUNDS), |n| n.parse())?;
    let scratch = Scratch(above.join(format!("holdfast-bench-{}", std::process::id())));
    fs::create_dir_all(&scratch.0)?;
    let pool = Pool::open(&scratch.path("pool"), Arc::new(RealSys))?;
    println!("Load when it began: {}", fs::read_to_string("/proc/loadavg")?.trim());
    println!();
    if rounds > 0 {
        durable_writes(&pool, &scratch, rounds)?;
    }
    println!("| step | median | range |");
    println!("|---|---|---|");
    for kind in ["ext4", "xfs"].into_iter().filter(|kind| RealSys.can_format(kind)) {
        life(&pool, &scratch, kind)?;
    }
    copies(&pool, &scratch, "pool here, images", Backend::Image)?;
    copies_on(&scratch, "xfs")?;
    copies_on(&scratch, "btrfs")
}

fn main() {
    if let Err(error) = run() {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}
