//! Kernel calls that neither `nix` nor `rustix` offer safely. All `unsafe` of this crate is here.
#![allow(unsafe_code)]
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal},
    unistd::ForkResult,
};

/// Splits the process in two. Only for processes with one thread: the shim and its children.
pub(crate) fn fork() -> io::Result<ForkResult> {
    debug_assert_eq!(threads(), 1, "fork with several threads can deadlock in the child");
    // SAFETY: the shim never starts a thread, so no lock can be held by a thread that the child lacks.
    unsafe { nix::unistd::fork() }.map_err(io::Error::from)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Gives every signal its default action and unblocks all: what a fresh program expects.
pub(crate) fn reset_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: setting the default action installs no handler. KILL and STOP refuse, which is fine.
        let _ = unsafe { nix::sys::signal::sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// Attributes for [`mount_setattr`], the kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// Changes a mount (and, if `recursive`, all below it) given by its root.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, the struct has the size that is passed, the kernel only reads both.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `fd` the controlling terminal of this session leader.
pub(crate) fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument, no memory.
    let code = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on close-on-exec, so that nothing of ours reaches the container's program.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now, so no owner is left with a dangling descriptor.
    let code = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces descriptors 0, 1 and 2.
pub(crate) fn set_stdio(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
    // Copies above 2 first: the sources may themselves be among 0..=2.
    let copies = [stdin, stdout, stderr].map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
    for (target, copy) in (0..).zip(copies) {
        let copy = copy?;
        // SAFETY: 0, 1 and 2 are owned by nobody in this program; they are replaced, never closed.
        if unsafe { libc::dup2(copy.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes descriptor 0, which the parent prepared for us, and leaves `/dev/null` in its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: see `set_stdio`.
    if unsafe { libc::dup2(null.as_fd().as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(taken)
}

/// Ends the process at once, without running anybody's destructors: the end of a forked child.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// One instruction of a classic BPF program.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockFilter {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Installs a system-call filter on this thread and all it starts.
pub(crate) fn set_seccomp_filter(program: &[SockFilter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::other("the system-call filter is too long"))?;
    #[repr(C)]
    struct SockFprog {
        len: u16,
        filter: *const SockFilter,
    }
    let prog = SockFprog { len, filter: program.as_ptr() };
    // SAFETY: `prog` describes a live slice of instructions in the kernel's layout; the kernel copies it.
    let code = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&prog)) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program (eBPF instructions as raw 64-bit words) and returns it.
pub(crate) fn load_device_program(words: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    #[repr(C, align(8))]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        rest: [u64; 12],
    }
    let attr = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(words.len()).map_err(|_| io::Error::other("the device filter is too long"))?,
        code: words.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: `attr` is laid out as `union bpf_attr` for this command, unused fields are zero, pointers live over the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_ref(&attr), size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// Attaches a device program to a version 2 cgroup directory.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    #[repr(C, align(8))]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attr = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is laid out as `union bpf_attr` for this command; the kernel only reads it.
    let code = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, std::ptr::from_ref(&attr), size_of::<Attach>()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
