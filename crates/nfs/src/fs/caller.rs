//! Who asks for something: the kernel says user, group and thread; further groups, and whether it still lives, are read
//! from `/proc`.
use std::{
    fs,
    io::{self, ErrorKind},
};

use crate::rpc::Credential;

/// One that waits in a system call: a thread; 0 is the kernel itself, or one that this process cannot see.
#[derive(Clone, Copy)]
pub(super) struct Caller(pub u32);

impl Caller {
    /// In whose name the server is asked.
    pub fn credential(self, uid: u32, gid: u32) -> Credential {
        let groups = fs::read_to_string(format!("/proc/{}/status", self.0)).map(|s| groups(&s)).unwrap_or_default();
        Credential::unix(uid, gid, &groups)
    }

    /// Whether it was killed: whatever it waited for, it will not see it.
    ///
    /// One that exits by itself still waits for what it wrote to arrive.
    pub fn is_killed(self) -> bool {
        if self.0 == 0 {
            return false;
        }
        let read = |file: &str| -> io::Result<String> { fs::read_to_string(format!("/proc/{}/{file}", self.0)) };
        match (read("status"), read("stat")) {
            (Ok(status), Ok(stat)) => has_kill_pending(&status) || ends_killed(&stat),
            (Err(e), _) | (_, Err(e)) => e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(ESRCH),
        }
    }
}

const ESRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();
const SIGKILL: u64 = 9;
/// `PF_EXITING` among a thread's flags.
const EXITING: u64 = 4;

fn groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|g| g.parse().ok()).collect()
}

fn has_kill_pending(status: &str) -> bool {
    let masks = status.lines().filter_map(|l| l.strip_prefix("SigPnd:").or_else(|| l.strip_prefix("ShdPnd:")));
    masks.filter_map(|m| u64::from_str_radix(m.trim(), 16).ok()).any(|m| m & (1 << (SIGKILL - 1)) != 0)
}

/// Whether it is on its way out because of the signal, which is pending no more then.
fn ends_killed(stat: &str) -> bool {
    // After the name, which may have anything in it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
    let (flags, exit_code) = (number(6), number(49));
    fields.first() == Some(&"Z") || (flags & EXITING != 0 && exit_code & 0x7f == SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_kills_are_read() {
        assert_eq!(groups("Name:\tx\nGroups:\t4 24 1000 \nSigPnd:\t0\n"), [4, 24, 1000]);
        assert!(has_kill_pending("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(has_kill_pending("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        // SIGCHLD, which a program waits through.
        assert!(!has_kill_pending("SigPnd:\t0000000000010000\nShdPnd:\t0000000000000000\n"));
        let stat = |flags: u32, exit: u32| format!("7 (a b) c) D 1 1 1 0 -1 {flags}{} {exit}", " 0".repeat(42));
        assert!(ends_killed(&stat(0x40_0004, 9)));
        assert!(!ends_killed(&stat(0x40_0004, 0)), "it exits by itself");
        assert!(!ends_killed(&stat(0x40_0000, 9)), "it does not exit");
    }

    #[test]
    fn a_living_process_is_not_killed() {
        assert!(!Caller(std::process::id()).is_killed());
        assert!(Caller(u32::MAX >> 1).is_killed());
    }
}
