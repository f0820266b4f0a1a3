//! Control groups of pods and containers, on version 1, hybrid and version 2 hosts.
//!
//! A group is named by one path relative to every hierarchy's root: `<instance>/pod<uid>/<container id>`.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    contract::{Resources, Usage},
    devices::{self, Rule},
};

/// Version 1 controllers that a container gets a group in. Others are left to the parent: no limit of ours lives there.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "devices", "pids", "hugetlb"];
/// How long removal waits for killed processes to leave their group.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// The host's hierarchies.
#[derive(Debug, Clone)]
pub(crate) enum Cgroups {
    /// Controller name to mount point. Co-mounted controllers share a mount point.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

impl Cgroups {
    /// Finds out from the mount table and this process's membership what the host has.
    pub(crate) fn detect() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        Self::parse(&mounts, &own)
            .ok_or_else(|| io::Error::other("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup"))
    }

    fn parse(mountinfo: &str, own: &str) -> Option<Self> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        // A service manager kills what it finds in a service's group: where we are in one, containers must leave it.
        let managed = own.lines().any(|l| l.contains(":name=systemd:/") && !l.ends_with(":/"));
        for line in mountinfo.lines() {
            let (front, back) = line.split_once(" - ")?;
            let mut back = back.split(' ');
            let (kind, _source, options) = (back.next()?, back.next()?, back.next()?);
            let point = PathBuf::from(front.split(' ').nth(4)?);
            match kind {
                "cgroup2" => v2 = v2.or(Some(point)),
                "cgroup" => {
                    for option in options.split(',') {
                        if CONTROLLERS.contains(&option) {
                            v1.entry(option.to_owned()).or_insert_with(|| point.clone());
                        } else if option == "name=systemd" && managed {
                            v1.entry("systemd".to_owned()).or_insert_with(|| point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        if v1.contains_key("memory") || v1.contains_key("cpu") || v1.contains_key("pids") {
            return Some(Self::V1(v1));
        }
        v2.map(Self::V2)
    }

    /// The directories of a group, each once.
    fn dirs(&self, group: &str) -> Vec<PathBuf> {
        match self {
            Self::V1(points) => {
                let mut dirs: Vec<_> = points.values().map(|p| p.join(group)).collect();
                dirs.sort();
                dirs.dedup();
                dirs
            }
            Self::V2(root) => vec![root.join(group)],
        }
    }

    /// Where a version 1 container finds each hierarchy: `(name below /sys/fs/cgroup, directory of the group)`.
    pub(crate) fn views(&self, group: &str) -> Vec<(String, PathBuf)> {
        match self {
            Self::V1(points) => points
                .values()
                .filter_map(|p| Some((p.file_name()?.to_str()?.to_owned(), p.join(group))))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect(),
            Self::V2(_) => Vec::new(),
        }
    }

    fn dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        match self {
            Self::V1(points) => points.get(controller).map(|p| p.join(group)),
            Self::V2(root) => Some(root.join(group)),
        }
    }

    /// Makes the group (idempotent) and sets its limits.
    pub(crate) fn create(&self, group: &str, resources: &Resources) -> io::Result<()> {
        if let Self::V2(root) = self {
            delegate(root, group)?;
        }
        for dir in self.dirs(group) {
            fs::create_dir_all(&dir).map_err(|e| context(&e, "make cgroup", &dir))?;
        }
        self.limit(group, resources)
    }

    fn limit(&self, group: &str, resources: &Resources) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: String| -> io::Result<()> {
            let Some(dir) = self.dir(controller, group) else {
                tracing::warn!(controller, group, "this host has no such cgroup controller; the limit is not enforced");
                return Ok(());
            };
            let path = dir.join(file);
            // Writing must never make a file: outside a hierarchy that would look like success.
            match OpenOptions::new().write(true).open(&path) {
                Ok(mut f) => {
                    f.write_all(value.as_bytes()).map_err(|e| context(&e, &format!("write {value} to"), &path))
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), "the kernel lacks this cgroup setting; the limit is not enforced");
                    Ok(())
                }
                Err(e) => Err(context(&e, "open", &path)),
            }
        };
        let v2 = matches!(self, Self::V2(_));
        if let Some(shares) = resources.cpu_shares {
            let shares = shares.clamp(2, 262_144);
            if v2 {
                set("cpu", "cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string())?;
            } else {
                set("cpu", "cpu.shares", shares.to_string())?;
            }
        }
        let period = resources.cpu_period.unwrap_or(100_000);
        if let Some(quota) = resources.cpu_quota {
            if v2 {
                let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
                set("cpu", "cpu.max", format!("{quota} {period}"))?;
            } else {
                set("cpu", "cpu.cfs_period_us", period.to_string())?;
                set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(limit) = resources.memory_limit.filter(|l| *l > 0) {
            set("memory", if v2 { "memory.max" } else { "memory.limit_in_bytes" }, limit.to_string())?;
            // As kubelets do on version 2: a container dies as a whole, a pod never does.
            if v2 && group.split('/').count() > 2 {
                set("memory", "memory.oom.group", "1".to_owned())?;
            }
        }
        if let Some(limit) = resources.pids_limit.filter(|l| *l > 0) {
            set("pids", "pids.max", limit.to_string())?;
        }
        self.limit_huge_pages(group, resources)
    }

    /// Lets a container have no more huge pages than it asked for: of each size that the kernel has.
    fn limit_huge_pages(&self, group: &str, resources: &Resources) -> io::Result<()> {
        let suffix = if matches!(self, Self::V2(_)) { ".max" } else { ".limit_in_bytes" };
        let Some(dir) = self.dir("hugetlb", group).filter(|_| group.split('/').count() > 2) else { return Ok(()) };
        for entry in fs::read_dir(&dir).map_err(|e| context(&e, "list", &dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let page = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix)).and_then(page_bytes);
            let Some(page) = page else { continue };
            let bytes = resources.huge_pages.get(&page).copied().unwrap_or(0);
            let written = fs::write(entry.path(), bytes.to_string());
            written.map_err(|e| context(&e, &format!("write {bytes} to"), &entry.path()))?;
        }
        Ok(())
    }

    /// Restricts the group to the given device nodes; everything else is refused.
    pub(crate) fn restrict_devices(&self, group: &str, rules: &[Rule]) -> io::Result<()> {
        match self {
            Self::V1(points) => {
                let Some(dir) = points.get("devices").map(|p| p.join(group)) else {
                    tracing::warn!(group, "this host has no devices cgroup; device access is not restricted");
                    return Ok(());
                };
                let write = |file: &str, text: &str| {
                    let path = dir.join(file);
                    fs::write(&path, text).map_err(|e| context(&e, &format!("write {text:?} to"), &path))
                };
                write("devices.deny", "a")?;
                rules.iter().try_for_each(|r| write("devices.allow", &r.to_string()))
            }
            Self::V2(root) => {
                let dir = File::open(root.join(group))?;
                let program = crate::kernel::load_device_program(&devices::program(rules));
                match program.and_then(|p| {
                    crate::kernel::attach_device_program(std::os::fd::AsFd::as_fd(&dir), std::os::fd::AsFd::as_fd(&p))
                }) {
                    Err(e)
                        if matches!(
                            e.raw_os_error(),
                            Some(nix::libc::EPERM | nix::libc::ENOSYS | nix::libc::EINVAL)
                        ) =>
                    {
                        tracing::warn!(group, error = %e, "device access cannot be restricted here");
                        Ok(())
                    }
                    other => other,
                }
            }
        }
    }

    /// Opens the files through which a process joins the group by writing `0`.
    pub(crate) fn doors(&self, group: &str) -> io::Result<Vec<File>> {
        self.dirs(group)
            .iter()
            .map(|d| {
                let path = d.join("cgroup.procs");
                OpenOptions::new().write(true).open(&path).map_err(|e| context(&e, "open", &path))
            })
            .collect()
    }

    /// Moves the calling process out of its service's group, where the service manager would kill it with the daemon.
    ///
    /// Does nothing where no manager keeps groups.
    pub(crate) fn leave_service(&self, group: &str) -> io::Result<()> {
        let dir = match self {
            Self::V1(points) => points.get("systemd").map(|p| p.join(group)),
            Self::V2(root) => {
                let own = fs::read_to_string("/proc/self/cgroup")?;
                let managed = own.lines().any(|l| l.starts_with("0::/") && l.len() > "0::/".len());
                managed.then(|| root.join(group))
            }
        };
        let Some(dir) = dir else { return Ok(()) };
        fs::create_dir_all(&dir).map_err(|e| context(&e, "make cgroup", &dir))?;
        fs::write(dir.join("cgroup.procs"), "0").map_err(|e| context(&e, "join cgroup", &dir))
    }

    /// Processes in the group and the groups below it.
    fn processes(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for dir in self.dirs(group) {
            walk(&dir, &mut |d| {
                let text = fs::read_to_string(d.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
            });
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills every process in the group and below, until none is left. Returns whether it is empty.
    pub(crate) fn kill(&self, group: &str) -> bool {
        let started = std::time::Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Self::V2(root) = self {
                let _ = fs::write(root.join(group).join("cgroup.kill"), "1");
            }
            let pids = self.processes(group);
            if pids.is_empty() {
                return true;
            }
            for pid in pids {
                // A process that forks meanwhile is met in the next round.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            if started.elapsed() > LEAVE_WAIT {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Kills what is in the group and removes it with all below it. Idempotent.
    pub(crate) fn remove(&self, group: &str) -> io::Result<()> {
        if self.dirs(group).iter().all(|d| !d.exists()) {
            return Ok(());
        }
        let empty = self.kill(group);
        for dir in self.dirs(group) {
            let mut all = Vec::new();
            walk(&dir, &mut |d| all.push(d.to_owned()));
            // Deepest last in the walk, so remove from the end.
            for d in all.iter().rev() {
                remove_group(d).map_err(|e| {
                    let why = if empty { "" } else { " (its processes do not die)" };
                    context(&e, &format!("remove{why} cgroup"), d)
                })?;
            }
        }
        Ok(())
    }

    /// How many processes of the group the kernel has killed for lack of memory.
    pub(crate) fn oom_kills(&self, group: &str) -> u64 {
        let file = match self {
            Self::V1(_) => "memory.oom_control",
            Self::V2(_) => "memory.events",
        };
        self.dir("memory", group)
            .and_then(|d| fs::read_to_string(d.join(file)).ok())
            .map_or(0, |t| field(&t, "oom_kill"))
    }

    /// Usage of the group and all below it.
    pub(crate) fn usage(&self, group: &str) -> io::Result<Usage> {
        let read = |controller: &str, file: &str| -> io::Result<String> {
            match self.dir(controller, group) {
                Some(d) => fs::read_to_string(d.join(file)).map_err(|e| context(&e, "read", &d.join(file))),
                None => Ok(String::new()),
            }
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let (cpu, used, stat, idle) = match self {
            Self::V1(_) => (
                number(read("cpuacct", "cpuacct.usage")?),
                number(read("memory", "memory.usage_in_bytes")?),
                read("memory", "memory.stat")?,
                "total_inactive_file",
            ),
            Self::V2(_) => (
                field(&read("cpu", "cpu.stat")?, "usage_usec") * 1000,
                number(read("memory", "memory.current")?),
                read("memory", "memory.stat")?,
                "inactive_file",
            ),
        };
        Ok(Usage { cpu_nanoseconds: cpu, memory_working_set_bytes: used.saturating_sub(field(&stat, idle)) })
    }
}

/// The size of a page as the kernel writes it: `2MB`.
fn page_bytes(text: &str) -> Option<u64> {
    let units = [("KB", 10), ("MB", 20), ("GB", 30)];
    units.into_iter().find_map(|(unit, shift)| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? << shift))
}

/// Hands the controllers we use down to `group`'s parents (version 2).
fn delegate(root: &Path, group: &str) -> io::Result<()> {
    let mut dir = root.to_owned();
    let parents = Path::new(group).parent().into_iter().flat_map(Path::components);
    for part in std::iter::once(None).chain(parents.map(Some)) {
        if let Some(part) = part {
            dir.push(part);
            fs::create_dir_all(&dir).map_err(|e| context(&e, "make cgroup", &dir))?;
        }
        let there = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        for controller in
            ["cpu", "memory", "pids", "hugetlb"].iter().filter(|c| there.split_whitespace().any(|t| t == **c))
        {
            // One by one: a controller that cannot be handed down must not take the others along.
            if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
                tracing::warn!(controller, dir = %dir.display(), %error, "cgroup controller cannot be delegated; its limits are not enforced");
            }
        }
    }
    Ok(())
}

/// Calls `f` for `dir` and every directory below, parents first.
fn walk(dir: &Path, f: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    f(dir);
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), f);
        }
    }
}

/// Removes one group, waiting for the last dead process to leave it.
fn remove_group(dir: &Path) -> io::Result<()> {
    let started = std::time::Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < LEAVE_WAIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn context(error: &io::Error, action: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hosts_are_used_as_version_1() {
        let Some(Cgroups::V1(points)) = Cgroups::parse(V1, "9:name=systemd:/\n0::/\n") else { panic!("not version 1") };
        assert_eq!(points.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "memory"]);
        let groups = Cgroups::V1(points);
        assert_eq!(groups.dirs("a/b").len(), 2, "co-mounted controllers have one directory");
        assert_eq!(groups.views("a").iter().map(|v| v.0.as_str()).collect::<Vec<_>>(), ["cpu,cpuacct", "memory"]);
    }

    #[test]
    fn a_service_leaves_its_managers_group() {
        let Some(Cgroups::V1(points)) = Cgroups::parse(V1, "9:name=systemd:/system.slice/holdfast.service\n") else {
            panic!("not version 1")
        };
        assert!(points.contains_key("systemd"));
    }

    #[test]
    fn a_pure_version_2_host() {
        let info = "25 24 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(matches!(Cgroups::parse(info, "0::/x\n"), Some(Cgroups::V2(p)) if p == Path::new("/sys/fs/cgroup")));
        assert!(Cgroups::parse("25 24 0:22 / /proc rw - proc proc rw\n", "").is_none());
    }

    /// On any host with a version 2 hierarchy, also one without controllers.
    #[test]
    fn a_version_2_group_lives_and_dies() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(line) = mounts.lines().find(|l| l.contains(" - cgroup2 ")) else { return };
        let groups = Cgroups::V2(line.split(' ').nth(4).unwrap().into());
        let root = format!("hfrt-unit-{}", std::process::id());
        let group = format!("{root}/pod/container");
        groups.create(&group, &Resources { pids_limit: Some(10), ..Resources::default() }).unwrap();
        groups.restrict_devices(&group, &devices::defaults()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for mut door in groups.doors(&group).unwrap() {
            door.write_all(child.id().to_string().as_bytes()).unwrap();
        }
        assert_eq!(groups.processes(&root), [child.id() as i32]);
        // Collected at once, or the dead process would keep its group.
        let waiter = std::thread::spawn(move || child.wait());
        groups.remove(&root).unwrap();
        waiter.join().unwrap().unwrap();
        assert!(!groups.dir("", &root).unwrap().exists());
        groups.remove(&root).unwrap();
    }

    /// A directory tree in place of the kernel: the files are there, nobody acts on them.
    fn fake_version_2(group: &str, controllers: &str) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        let mut at = dir.path().to_owned();
        for part in std::iter::once("").chain(group.split('/')) {
            at.push(part);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("cgroup.controllers"), controllers).unwrap();
        }
        for file in ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group", "pids.max", "cgroup.procs"] {
            fs::write(at.join(file), "").unwrap();
            fs::write(at.parent().unwrap().join(file), "").unwrap();
        }
        let groups = Cgroups::V2(dir.path().to_owned());
        (dir, groups)
    }

    #[test]
    fn version_2_limits_are_written_as_the_kernel_reads_them() {
        let (dir, groups) = fake_version_2("i/podu/c", "cpuset cpu io memory pids");
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        let full = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            memory_limit: Some(1 << 20),
            pids_limit: Some(7),
            ..Resources::default()
        };
        groups.create("i/podu/c", &full).unwrap();
        let found = ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group", "pids.max"];
        let found = found.map(|f| read(&format!("i/podu/c/{f}")));
        assert_eq!(found, ["39", "50000 100000", "1048576", "1", "7"]);
        // Each is handed down on the way, the last of the three last; never in the group that has the processes.
        for parent in ["", "i/", "i/podu/"] {
            assert_eq!(read(&format!("{parent}cgroup.subtree_control")), "+pids", "{parent:?}");
        }
        assert!(!dir.path().join("i/podu/c/cgroup.subtree_control").exists());
        groups.create("i/podu", &full).unwrap();
        assert_eq!((read("i/podu/memory.max").as_str(), read("i/podu/memory.oom.group").as_str()), ("1048576", ""));
        for (shares, weight) in [(0, "1"), (2, "1"), (262_144, "10000"), (1 << 40, "10000")] {
            let (dir, groups) = fake_version_2("i/podu/c", "cpu");
            let wanted = Resources { cpu_shares: Some(shares), cpu_quota: Some(-1), ..Resources::default() };
            groups.create("i/podu/c", &wanted).unwrap();
            let read = |file: &str| fs::read_to_string(dir.path().join("i/podu/c").join(file)).unwrap();
            assert_eq!((read("cpu.weight").as_str(), read("cpu.max").as_str()), (weight, "max 100000"), "{shares}");
            assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+cpu");
        }
    }

    #[test]
    fn containers_have_the_huge_pages_that_they_asked_for() {
        let (dir, groups) = fake_version_2("i/podu/c", "hugetlb");
        let path = |size: &str| dir.path().join(format!("i/podu/c/hugetlb.{size}.max"));
        ["2MB", "1GB"].iter().for_each(|size| fs::write(path(size), "max").unwrap());
        let wanted = Resources { huge_pages: [(2 << 20, 8 << 20)].into(), ..Resources::default() };
        groups.create("i/podu/c", &wanted).unwrap();
        assert_eq!(["2MB", "1GB"].map(|size| fs::read_to_string(path(size)).unwrap()), ["8388608", "0"]);
    }

    #[test]
    fn a_version_2_host_without_a_controller_runs_without_its_limit() {
        let (dir, groups) = fake_version_2("i/podu/c", "");
        for file in ["memory.max", "memory.oom.group"] {
            fs::remove_file(dir.path().join("i/podu/c").join(file)).unwrap();
        }
        let wanted = Resources { memory_limit: Some(1 << 20), ..Resources::default() };
        groups.create("i/podu/c", &wanted).unwrap();
        assert!(!dir.path().join("i/podu/c/memory.max").exists(), "a write never makes a file");
        assert!(!dir.path().join("cgroup.subtree_control").exists());
    }

    #[test]
    fn version_2_usage_is_read_in_its_units() {
        let (dir, groups) = fake_version_2("i/podu/c", "cpu memory");
        let put = |file: &str, text: &str| fs::write(dir.path().join("i/podu/c").join(file), text).unwrap();
        put("cpu.stat", "usage_usec 5\nuser_usec 4\n");
        put("memory.current", "1000\n");
        put("memory.stat", "anon 1\ninactive_file 300\nactive_file 5\n");
        put("memory.events", "low 0\noom 4\noom_kill 2\noom_group_kill 1\n");
        let usage = groups.usage("i/podu/c").unwrap();
        assert_eq!((usage.cpu_nanoseconds, usage.memory_working_set_bytes), (5000, 700));
        assert_eq!(groups.oom_kills("i/podu/c"), 2);
    }

    #[test]
    fn fields_are_whole_words() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!(field("", "oom_kill"), 0);
    }
}
