//! Capability sets by name.

/// Names in the kernel's order: the index is the bit.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nothing is said: the set that container engines agree on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability there is.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// How many capabilities there are.
pub(crate) const COUNT: u32 = NAMES.len() as u32;

fn bit(name: &str) -> Result<u64, String> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(ALL);
    }
    NAMES
        .iter()
        .position(|n| *n == short)
        .map(|i| 1 << i)
        .ok_or_else(|| format!("unknown capability {name:?}; see capabilities(7) for the names"))
}

/// The default set changed by a pod's wishes. `ALL` is applied before single names, so that `drop: ALL` with
/// `add: NET_ADMIN` leaves one, and `add: ALL` with `drop: NET_ADMIN` lacks one.
pub(crate) fn set(add: &[String], drop: &[String]) -> Result<u64, String> {
    let named = |list: &[String]| list.iter().try_fold(0, |all, n| Ok::<_, String>(all | bit(n)?));
    let has_all = |list: &[String]| list.iter().any(|n| bit(n) == Ok(ALL));
    let single = |list: &[String]| named(&list.iter().filter(|n| bit(n) != Ok(ALL)).cloned().collect::<Vec<_>>());
    let mut caps = DEFAULT.iter().fold(0, |all, n| all | bit(n).unwrap_or(0));
    if has_all(add) {
        caps = ALL;
    }
    if has_all(drop) {
        caps = 0;
    }
    Ok((caps & !single(drop)?) | single(add)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(add: &[&str], drop: &[&str]) -> u64 {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        set(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn sets() {
        assert_eq!(run(&[], &[]), 0xa80425fb, "the figure every engine shows as CapBnd");
        assert_eq!(run(&[], &["ALL"]), 0);
        assert_eq!(run(&["NET_BIND_SERVICE"], &["ALL"]), 1 << 10);
        assert_eq!(run(&["ALL"], &[]), ALL);
        assert_eq!(run(&["ALL"], &["CHOWN"]), ALL & !1);
        assert_eq!(run(&["CAP_sys_time"], &[]), 0xa80425fb | 1 << 25);
        assert_eq!(run(&["CHOWN"], &["CHOWN"]) & 1, 1, "drop before add");
        assert!(set(&["FLY".to_owned()], &[]).unwrap_err().contains("FLY"));
    }

    #[test]
    fn the_table_is_in_the_kernels_order() {
        use rustix::thread::CapabilitySet as C;
        for (name, flag) in
            [("CHOWN", C::CHOWN), ("SYS_ADMIN", C::SYS_ADMIN), ("CHECKPOINT_RESTORE", C::CHECKPOINT_RESTORE)]
        {
            assert_eq!(bit(name), Ok(flag.bits()), "{name}");
        }
    }
}
