//! The default system-call filter (`seccompProfile: RuntimeDefault`).
//!
//! It refuses what container engines agree to refuse: calls that change the host, look into other processes' kernel
//! objects, or have a history of holes, unless the container was given the capability that the call is about. Calls newer
//! than this list are answered with ENOSYS, as an older kernel would, so that programs fall back.
use nix::libc;

use crate::{contract::Seccomp, kernel::SockFilter};

/// The filter for a container with the given capabilities; `None` for no filter.
pub(crate) fn filter(wish: &Seccomp, capabilities: u64) -> Result<Option<Vec<SockFilter>>, String> {
    match wish {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(default_filter(capabilities))),
        Seccomp::Localhost(path) => Err(format!(
            "seccomp profile {} cannot be loaded: only RuntimeDefault and Unconfined are supported",
            path.display()
        )),
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Highest call that was looked at for this list (`mseal` and its neighbours of Linux 6.10 and later are harmless).
const NEWEST: u32 = 470;
/// Flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// Families of sockets that reach the hypervisor (vsock) or the kernel's crypto (alg).
const SOCKETS_REFUSED: [u32; 2] = [40, 38];
/// Execution domains that change nothing but what `uname` says and address layout.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

// Bits of the capabilities that excuse a call.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_MODULE: u64 = 1 << 16;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_CHROOT: u64 = 1 << 18;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_PACCT: u64 = 1 << 20;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_BOOT: u64 = 1 << 22;
const SYS_NICE: u64 = 1 << 23;
const SYS_TIME: u64 = 1 << 25;
const SYSLOG: u64 = 1 << 34;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
const NOBODY: u64 = 0;

/// Refused calls, each with the capabilities that lift the refusal.
const REFUSED: &[(libc::c_long, u64)] = &[
    (libc::SYS_acct, SYS_PACCT),
    (libc::SYS_add_key, NOBODY),
    (libc::SYS_bpf, SYS_ADMIN | BPF),
    (libc::SYS_chroot, SYS_CHROOT),
    (libc::SYS_clock_adjtime, SYS_TIME),
    (libc::SYS_clock_settime, SYS_TIME),
    (libc::SYS_adjtimex, SYS_TIME),
    (libc::SYS_settimeofday, SYS_TIME),
    (libc::SYS_delete_module, SYS_MODULE),
    (libc::SYS_finit_module, SYS_MODULE),
    (libc::SYS_init_module, SYS_MODULE),
    (libc::SYS_fanotify_init, SYS_ADMIN),
    (libc::SYS_fsconfig, SYS_ADMIN),
    (libc::SYS_fsmount, SYS_ADMIN),
    (libc::SYS_fsopen, SYS_ADMIN),
    (libc::SYS_fspick, SYS_ADMIN),
    (libc::SYS_get_mempolicy, SYS_NICE),
    (libc::SYS_mbind, SYS_NICE),
    (libc::SYS_set_mempolicy, SYS_NICE),
    (libc::SYS_migrate_pages, NOBODY),
    (libc::SYS_move_pages, NOBODY),
    (libc::SYS_io_uring_enter, NOBODY),
    (libc::SYS_io_uring_register, NOBODY),
    (libc::SYS_io_uring_setup, NOBODY),
    (libc::SYS_kcmp, SYS_PTRACE),
    (libc::SYS_pidfd_getfd, SYS_PTRACE),
    (libc::SYS_process_madvise, SYS_PTRACE),
    (libc::SYS_kexec_load, SYS_BOOT),
    (libc::SYS_reboot, SYS_BOOT),
    (libc::SYS_keyctl, NOBODY),
    (libc::SYS_request_key, NOBODY),
    (libc::SYS_lookup_dcookie, SYS_ADMIN),
    (libc::SYS_mount, SYS_ADMIN),
    (libc::SYS_mount_setattr, SYS_ADMIN),
    (libc::SYS_move_mount, SYS_ADMIN),
    (libc::SYS_open_tree, SYS_ADMIN),
    (libc::SYS_umount2, SYS_ADMIN),
    (libc::SYS_pivot_root, NOBODY),
    (libc::SYS_nfsservctl, NOBODY),
    (libc::SYS_open_by_handle_at, DAC_READ_SEARCH),
    (libc::SYS_perf_event_open, SYS_ADMIN | PERFMON),
    (libc::SYS_quotactl, SYS_ADMIN),
    (libc::SYS_quotactl_fd, SYS_ADMIN),
    (libc::SYS_setdomainname, SYS_ADMIN),
    (libc::SYS_sethostname, SYS_ADMIN),
    (libc::SYS_setns, SYS_ADMIN),
    (libc::SYS_unshare, SYS_ADMIN),
    (libc::SYS_swapoff, NOBODY),
    (libc::SYS_swapon, NOBODY),
    (libc::SYS_syslog, SYSLOG),
    (libc::SYS_userfaultfd, NOBODY),
    (libc::SYS_vhangup, 1 << 26),
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[(libc::c_long, u64)] = &[
    (libc::SYS__sysctl, NOBODY),
    (libc::SYS_ioperm, SYS_RAWIO),
    (libc::SYS_iopl, SYS_RAWIO),
    (libc::SYS_kexec_file_load, SYS_BOOT),
    (libc::SYS_sysfs, NOBODY),
    (libc::SYS_uselib, NOBODY),
    (libc::SYS_ustat, NOBODY),
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[(libc::c_long, u64)] = &[];

// Instructions of classic BPF.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
// Offsets in the data that a filter sees.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
// Verdicts.
const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;
const UNKNOWN: u32 = 0x0005_0000 | libc::ENOSYS as u32;

const fn op(code: u16, k: u32) -> SockFilter {
    SockFilter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}

fn default_filter(capabilities: u64) -> Vec<SockFilter> {
    let may = |needed: u64| capabilities & needed != 0;
    // Foreign instruction sets have other numbers: refuse all of their calls rather than filter the wrong ones.
    let mut code = vec![
        op(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, ARCH, 1, 0),
        op(RETURN, UNKNOWN),
        op(LOAD, NUMBER),
        jump(JUMP_GREATER, NEWEST, 0, 1),
        op(RETURN, UNKNOWN),
    ];
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    for (call, excuse) in REFUSED.iter().chain(REFUSED_HERE) {
        if !may(*excuse) {
            code.push(jump(JUMP_EQUAL, number(*call), 0, 1));
            code.push(op(RETURN, REFUSE));
        }
    }
    if !may(SYS_ADMIN) {
        // Its flags are behind a pointer, out of a filter's sight; without it, programs use `clone`.
        code.extend([jump(JUMP_EQUAL, number(libc::SYS_clone3), 0, 1), op(RETURN, UNKNOWN)]);
        code.extend([
            jump(JUMP_EQUAL, number(libc::SYS_clone), 0, 4),
            op(LOAD, FIRST_ARGUMENT),
            jump(JUMP_ANY_BIT, CLONE_NAMESPACES, 0, 1),
            op(RETURN, REFUSE),
            op(RETURN, ALLOW),
        ]);
    }
    code.extend([jump(JUMP_EQUAL, number(libc::SYS_socket), 0, 5), op(LOAD, FIRST_ARGUMENT)]);
    code.extend([
        jump(JUMP_EQUAL, SOCKETS_REFUSED[0], 1, 0),
        jump(JUMP_EQUAL, SOCKETS_REFUSED[1], 0, 1),
        op(RETURN, REFUSE),
        op(RETURN, ALLOW),
    ]);
    code.extend([jump(JUMP_EQUAL, number(libc::SYS_personality), 0, 7), op(LOAD, FIRST_ARGUMENT)]);
    for (left, value) in (0..PERSONALITIES.len() as u8).rev().zip(PERSONALITIES) {
        code.push(jump(JUMP_EQUAL, value, left + 1, 0));
    }
    code.extend([op(RETURN, REFUSE), op(RETURN, ALLOW)]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on one call, as the kernel would.
    fn verdict(code: &[SockFilter], arch: u32, call: libc::c_long, argument: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let i = code[at];
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    a = match i.k {
                        NUMBER => call as u32,
                        ARCHITECTURE => arch,
                        FIRST_ARGUMENT => argument,
                        other => panic!("loads offset {other}"),
                    }
                }
                JUMP_EQUAL => branch(a == i.k),
                JUMP_GREATER => branch(a > i.k),
                JUMP_ANY_BIT => branch(a & i.k != 0),
                RETURN => return i.k,
                other => panic!("unexpected instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_default_filter_decides() {
        const DEFAULT: u64 = 0xa804_25fb;
        let cases = [
            ("read", DEFAULT, libc::SYS_read, 0, ALLOW),
            ("mount", DEFAULT, libc::SYS_mount, 0, REFUSE),
            ("mount by an administrator", DEFAULT | SYS_ADMIN, libc::SYS_mount, 0, ALLOW),
            ("chroot", DEFAULT, libc::SYS_chroot, 0, ALLOW),
            ("chroot without its capability", 0, libc::SYS_chroot, 0, REFUSE),
            ("fork", DEFAULT, libc::SYS_clone, 17, ALLOW),
            ("a user namespace", DEFAULT, libc::SYS_clone, 0x1000_0000, REFUSE),
            ("a user namespace by an administrator", SYS_ADMIN, libc::SYS_clone, 0x1000_0000, ALLOW),
            ("clone3", DEFAULT, libc::SYS_clone3, 0, UNKNOWN),
            ("a TCP socket", DEFAULT, libc::SYS_socket, 2, ALLOW),
            ("a vsock socket", DEFAULT, libc::SYS_socket, 40, REFUSE),
            ("a crypto socket", DEFAULT, libc::SYS_socket, 38, REFUSE),
            ("no personality", DEFAULT, libc::SYS_personality, 0, ALLOW),
            ("asking for the personality", DEFAULT, libc::SYS_personality, u32::MAX, ALLOW),
            ("readable means executable", DEFAULT, libc::SYS_personality, 0x40_0000, REFUSE),
            ("keys, even with all capabilities", u64::MAX, libc::SYS_keyctl, 0, REFUSE),
            ("a call of tomorrow", DEFAULT, 9999, 0, UNKNOWN),
            ("the x32 instruction set", DEFAULT, 0x4000_0000, 0, UNKNOWN),
            ("exit", DEFAULT, libc::SYS_exit_group, 0, ALLOW),
        ];
        for (what, capabilities, call, argument, expected) in cases {
            assert_eq!(verdict(&default_filter(capabilities), ARCH, call, argument), expected, "{what}");
        }
        assert_eq!(verdict(&default_filter(DEFAULT), 0x4000_0003, 1, 0), UNKNOWN, "a foreign instruction set");
    }

    #[test]
    fn custom_profiles_are_refused_with_a_reason() {
        let text = filter(&Seccomp::Localhost("p.json".into()), 0).map(|_| ()).unwrap_err();
        assert!(text.contains("p.json"), "{text}");
    }
}
