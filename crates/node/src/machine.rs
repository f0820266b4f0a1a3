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
        }
    }

    /// What the downward API gives for limits that a container does not set.
    pub fn size(&self) -> NodeSize {
        NodeSize { cpu_milli: self.cpu_milli, memory_bytes: self.memory_bytes }
    }

    /// As the API lists it.
    pub fn list(&self) -> BTreeMap<String, Quantity> {
        let cpu = if self.cpu_milli % 1000 == 0 {
            (self.cpu_milli / 1000).to_string()
        } else {
            format!("{}m", self.cpu_milli)
        };
        [
            ("cpu", cpu),
            ("memory", format!("{}Ki", self.memory_bytes / 1024)),
            ("ephemeral-storage", format!("{}Ki", self.ephemeral_bytes / 1024)),
            ("pods", self.pods.to_string()),
            ("hugepages-1Gi", "0".into()),
            ("hugepages-2Mi", "0".into()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), Quantity(v)))
        .collect()
    }
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
