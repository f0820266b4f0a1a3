//! What this machine is: identity, software, size.
use std::{collections::BTreeMap, fs, path::Path};

use api::downward::NodeSize;
use k8s_openapi::{api::core::v1::NodeSystemInfo, apimachinery::pkg::api::resource::Quantity};

use crate::Config;

/// What the node offers to pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: u64,
    pub pods: u32,
    /// Bytes set aside, by size of page in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Capacity {
    /// The machine's, where the configuration does not say.
    pub fn of(config: &Config) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
        Self {
            cpu_milli: config.cpu_milli.unwrap_or(cpus * 1000),
            memory_bytes: config.memory_bytes.unwrap_or_else(memory_bytes),
            ephemeral_bytes: disk_bytes(config.layout.root()),
            pods: config.max_pods,
            huge_pages: huge_pages(Path::new(HUGE_PAGES)),
        }
    }

    /// What the downward API gives for limits that a container does not set.
    pub fn size(&self) -> NodeSize {
        NodeSize { cpu_milli: self.cpu_milli, memory_bytes: self.memory_bytes }
    }

    /// What pods may have of it, as the API lists it: memory that is set aside as huge pages is had as such only.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let huge = i64::try_from(self.huge_pages.values().sum::<u64>()).unwrap_or(i64::MAX);
        Self { memory_bytes: (self.memory_bytes - huge).max(0), ..self.clone() }.list()
    }

    /// As the API lists it.
    pub fn list(&self) -> BTreeMap<String, Quantity> {
        let cpu = if self.cpu_milli % 1000 == 0 {
            (self.cpu_milli / 1000).to_string()
        } else {
            format!("{}m", self.cpu_milli)
        };
        let huge = self.huge_pages.iter();
        let huge = huge.map(|(page, bytes)| (format!("hugepages-{}", in_binary(*page)), in_binary(*bytes)));
        [
            ("cpu", cpu),
            ("memory", format!("{}Ki", self.memory_bytes / 1024)),
            ("ephemeral-storage", format!("{}Ki", self.ephemeral_bytes / 1024)),
            ("pods", self.pods.to_string()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .chain(huge)
        .map(|(k, v)| (k, Quantity(v)))
        .collect()
    }
}

/// Where the kernel says which sizes of huge pages it has, and how many of each are set aside.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size =
        |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok().map(|kib| kib * 1024);
    let one = |entry: fs::DirEntry| {
        let page = size(entry.file_name().to_str()?)?;
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse::<u64>().ok()?;
        Some((page, page.saturating_mul(count)))
    };
    entries.filter_map(one).collect()
}

/// A size as the API writes it: in the largest unit that it is a whole number of.
fn in_binary(bytes: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.into_iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn memory_bytes() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib: i64 = total.and_then(|t| t.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0);
    kib * 1024
}

fn disk_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_blocks * s.f_frsize)
}

/// Below these the node is under pressure: upstream's defaults for eviction. Images lie on the node's own disk here, so the
/// stricter one of its two for disks counts.
const LEAST_MEMORY_BYTES: u64 = 100 << 20;
const LEAST_DISK_PERCENT: u64 = 15;
const LEAST_INODES_PERCENT: u64 = 5;
const LEAST_PIDS_PERCENT: u64 = 10;

/// What the machine is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    /// Looks at memory, processes, and the file system of `dir`. What cannot be read is not short.
    pub fn look(dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let disk = rustix::fs::statvfs(dir).ok();
        let number = |path: &str| read(path).trim().parse::<u64>().ok();
        let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        Self {
            memory: available_memory(&read("/proc/meminfo")).is_some_and(|bytes| bytes < LEAST_MEMORY_BYTES),
            disk: disk.is_some_and(|d| {
                below(d.f_bavail, d.f_blocks, LEAST_DISK_PERCENT) || below(d.f_favail, d.f_files, LEAST_INODES_PERCENT)
            }),
            pids: limits
                .into_iter()
                .flatten()
                .min()
                .zip(threads(&read("/proc/loadavg")))
                .is_some_and(|(most, now)| below(most.saturating_sub(now), most, LEAST_PIDS_PERCENT)),
        }
    }
}

/// `left` is less than so many percent of `all`; file systems without a limit say that they have 0 in all.
fn below(left: u64, all: u64, percent: u64) -> bool {
    u128::from(left) * 100 < u128::from(all) * u128::from(percent)
}

fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// All threads of the machine: `0.00 0.00 0.00 1/234 567` has 234.
fn threads(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Go's name for the processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// `status.nodeInfo`.
pub fn system_info(config: &Config) -> NodeSystemInfo {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let machine = first_line("/etc/machine-id");
    let hardware = first_line("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: config.runtime_version.clone(),
        kernel_version: first_line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: config.version.clone(),
        operating_system: "linux".into(),
        os_image: pretty.trim_matches('"').into(),
        system_uuid: if hardware.is_empty() { machine.clone() } else { hardware },
        machine_id: machine,
        ..NodeSystemInfo::default()
    }
}

#[test]
fn huge_pages_are_what_the_kernel_has_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, count) in [("hugepages-2048kB", "5\n"), ("hugepages-1048576kB", "0\n")] {
        fs::create_dir(dir.path().join(name)).expect("a directory");
        fs::write(dir.path().join(name).join("nr_hugepages"), count).expect("a file");
    }
    let all = Capacity { memory_bytes: 1 << 30, huge_pages: huge_pages(dir.path()), ..Capacity::default() };
    let of = |list: BTreeMap<String, Quantity>| {
        ["hugepages-2Mi", "hugepages-1Gi", "memory"].map(|name| list[name].0.clone())
    };
    assert_eq!(of(all.list()), ["10Mi", "0", "1048576Ki"]);
    assert_eq!(of(all.allocatable()), ["10Mi", "0", "1038336Ki"]);
}

#[test]
fn shortages_are_seen() {
    for (left, all, percent, want) in
        [(15, 100, 15, false), (14, 100, 15, true), (0, 0, 5, false), (u64::MAX, u64::MAX, 99, false), (0, 1, 1, true)]
    {
        assert_eq!(below(left, all, percent), want, "{left} of {all}, {percent} %");
    }
    assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   102399 kB\n"), Some(102_399 * 1024));
    assert_eq!(available_memory("MemTotal: 9 kB\n"), None);
    assert_eq!(threads("0.52 0.58 0.59 3/1234 56789\n"), Some(1234));
    assert_eq!(threads("?"), None);
}
