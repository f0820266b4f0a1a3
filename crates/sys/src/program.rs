//! Programs of the host: short ones that are waited for, and attendants, which serve a mount and outlive this process.
//!
//! Neither gets a shell, this process's environment, or a descriptor that was not named. What users may put into
//! arguments was judged by who calls this crate; secrets go through the standard input.
use std::{
    ffi::{OsStr, OsString},
    io::{self, ErrorKind, Read, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{self, AtFlags, FlockOperation, MemfdFlags, Mode, OFlags},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal},
};

use crate::{Handle, real::fd};

/// A program of the host with all that it is given.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    pub path: &'a Path,
    /// What it is told its own name is; `None`: its path.
    pub name: Option<&'a OsStr>,
    pub arguments: &'a [OsString],
    /// All of its environment.
    pub environment: &'a [(OsString, OsString)],
    /// What it reads from its standard input.
    pub input: &'a [u8],
    /// Descriptors that it inherits, under the numbers that they have here.
    pub files: &'a [BorrowedFd<'a>],
    /// User and group to run as, without further groups; `None`: as this process.
    pub user: Option<(u32, u32)>,
    /// The largest file that it may write, in bytes.
    pub file_bytes: Option<u64>,
    /// The most memory that it may map, in bytes.
    pub memory_bytes: Option<u64>,
}

impl<'a> Program<'a> {
    /// A program with nothing but arguments.
    pub fn new(path: &'a Path, arguments: &'a [OsString]) -> Self {
        Self {
            path,
            name: None,
            arguments,
            environment: &[],
            input: &[],
            files: &[],
            user: None,
            file_bytes: None,
            memory_bytes: None,
        }
    }
}

/// How long a short program may take and how much it may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub time: Duration,
    /// Of each of its outputs; what goes beyond is read and dropped.
    pub output_bytes: usize,
}

/// What a short program left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    pub output: Vec<u8>,
    pub errors: Vec<u8>,
}

/// Between looks at whether to go on waiting.
const LOOK: Duration = Duration::from_millis(20);
/// How long an attendant may take to go by itself when it is asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to remove one that was killed.
const REMOVAL: Duration = Duration::from_secs(5);

fn command(program: &Program<'_>) -> io::Result<Command> {
    let mut command = Command::new(program.path);
    if let Some(name) = program.name {
        command.arg0(name);
    }
    command.args(program.arguments).env_clear().envs(program.environment.iter().map(|(k, v)| (k, v)));
    command.current_dir("/");
    let input = match program.input {
        [] => Stdio::null(),
        bytes => {
            // A memory file, not a pipe: nobody has to write while the program reads.
            let mut file = std::fs::File::from(fs::memfd_create("input", MemfdFlags::CLOEXEC)?);
            file.write_all(bytes)?;
            file.rewind()?;
            Stdio::from(file)
        }
    };
    command.stdin(input);
    Ok(command)
}

/// What the new process does before it becomes the program: system calls only.
#[allow(unsafe_code)]
fn confine(command: &mut Command, program: &Program<'_>, dies_with_us: bool, record: Option<&std::fs::File>) {
    use nix::libc;
    let inherited: Vec<i32> =
        program.files.iter().map(AsRawFd::as_raw_fd).chain(record.map(AsRawFd::as_raw_fd)).collect();
    let (user, record) = (program.user, record.map(AsRawFd::as_raw_fd));
    let limits = [(libc::RLIMIT_FSIZE, program.file_bytes), (libc::RLIMIT_AS, program.memory_bytes)];
    let ok = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let act = move || {
        // SAFETY: system calls with numbers and pointers to locals that live as long as the call; all of them may be
        // made between fork and exec, and nothing here takes a lock or memory.
        unsafe {
            ok(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            if dies_with_us {
                ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            }
            for fd in &inherited {
                ok(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
            for (what, most) in limits {
                if let Some(most) = most {
                    ok(libc::setrlimit(what, &libc::rlimit { rlim_cur: most, rlim_max: most }))?;
                }
            }
            if let Some(record) = record {
                write_number(record, libc::getpid())?;
            }
            if let Some((uid, gid)) = user {
                ok(libc::setgroups(0, std::ptr::null()))?;
                ok(libc::setresgid(gid, gid, gid))?;
                ok(libc::setresuid(uid, uid, uid))?;
                // Changing the user takes this back.
                if dies_with_us {
                    ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                }
            }
        }
        Ok(())
    };
    // SAFETY: `act` makes nothing but system calls.
    unsafe { command.pre_exec(act) };
}

/// Writes a process id as text, without memory from the heap.
#[allow(unsafe_code)]
fn write_number(fd: i32, number: i32) -> io::Result<()> {
    let mut text = [b'\n'; 12];
    let (mut at, mut rest) = (text.len() - 1, number.unsigned_abs());
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let text = &text[at..];
    // SAFETY: the descriptor is open, and the buffer lives as long as the call.
    let written = unsafe { nix::libc::write(fd, text.as_ptr().cast(), text.len()) };
    if usize::try_from(written) == Ok(text.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn started(program: &Program<'_>, child: io::Result<Child>) -> io::Result<Child> {
    child.map_err(|e| io::Error::new(e.kind(), format!("run {}: {e}", program.path.display())))
}

/// Runs a program to its end.
pub(crate) fn run(program: &Program<'_>, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran> {
    let mut command = command(program)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    confine(&mut command, program, true, None);
    let mut child = started(program, command.spawn())?;
    let result = attend(&mut child, bounds, cancelled);
    if result.is_err() {
        // With all that it started.
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        child.wait()?;
    }
    result
}

/// Reads what a program says until it has ended.
fn attend(child: &mut Child, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran> {
    let until = Instant::now() + bounds.time;
    let pid = Pid::from_raw(child.id() as i32).ok_or(Errno::SRCH)?;
    let end = pidfd_open(pid, PidfdFlags::empty())?;
    let mut outputs = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    for output in outputs.iter().flatten() {
        fs::fcntl_setfl(output, OFlags::NONBLOCK)?;
    }
    let mut said = [Vec::new(), Vec::new()];
    let wait = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    loop {
        let status = child.try_wait()?;
        for (output, said) in outputs.iter_mut().zip(&mut said) {
            if output.as_ref().map(|from| drain(from, said, bounds.output_bytes)).transpose()? == Some(true) {
                *output = None;
            }
        }
        // Something that it started may go on holding its outputs: that is not waited for.
        if let Some(status) = status {
            let [output, errors] = said;
            return Ok(Ran { status: status.code(), output, errors });
        }
        if cancelled() {
            return Err(ErrorKind::Interrupted.into());
        }
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut watched: Vec<PollFd<'_>> = outputs.iter().flatten().map(|o| PollFd::new(o, PollFlags::IN)).collect();
        watched.push(PollFd::new(&end, PollFlags::IN));
        match poll(&mut watched, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads what is there. Returns whether that was the end.
fn drain(from: &OwnedFd, said: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    let mut buffer = [0; 8192];
    // Bounded, so that one who talks without end is still looked at.
    for _ in 0..64 {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => return Ok(true),
            Ok(length) => {
                let room = most.saturating_sub(said.len());
                said.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Opens the record of an attendant.
fn record(dir: &Handle, name: &OsStr, create: bool) -> io::Result<std::fs::File> {
    let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    flags.set(OFlags::CREATE, create);
    Ok(fs::openat(fd(dir)?, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Takes the lock of a record; false: a process has it.
fn lock(record: &std::fs::File) -> io::Result<bool> {
    match fs::flock(record, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn log_name(name: &OsStr) -> OsString {
    let mut log = name.to_owned();
    log.push(".log");
    log
}

/// A descriptor that this process was started with, by the number that it was told. Once for each number; nobody else may
/// use it. From now on, programs that this process starts do not inherit it.
///
/// # Errors
/// `EBADF`: nothing is open under that number.
#[allow(unsafe_code)]
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: only borrowed to be looked at; the kernel answers EBADF for a number that is not open.
    rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number.max(0)) }, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and by this function's contract belongs to nobody else in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number.max(0)) })
}

/// Starts an attendant, unless the one with this record lives.
pub(crate) fn start(program: &Program<'_>, dir: &Handle, name: &OsStr) -> io::Result<()> {
    let record = record(dir, name, true)?;
    if !lock(&record)? {
        return Ok(());
    }
    record.set_len(0)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let log = std::fs::File::from(fs::openat(fd(dir)?, log_name(name), flags, Mode::RUSR | Mode::WUSR)?);
    let mut command = command(program)?;
    command.stdout(log.try_clone()?).stderr(log);
    detach(&mut command);
    confine(&mut command, program, false, Some(&record));
    let mut child = started(program, command.spawn())?;
    // Somebody has to hear of its end while this process lives; afterwards init does.
    let waiter = std::thread::Builder::new().name("attendant".into()).stack_size(64 << 10);
    waiter.spawn(move || child.wait())?;
    Ok(())
}

/// Lets the new process have a session of its own: signals for ours do not reach it.
#[allow(unsafe_code)]
fn detach(command: &mut Command) {
    // SAFETY: one system call without arguments.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
}

/// The process id of the attendant with this record, if it lives.
pub(crate) fn attendant(dir: &Handle, name: &OsStr) -> io::Result<Option<u32>> {
    let mut record = match record(dir, name, false) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if lock(&record)? {
        return Ok(None);
    }
    let mut text = String::new();
    record.read_to_string(&mut text)?;
    // It holds the lock and has not written yet: it is about to.
    let unread = || io::Error::new(ErrorKind::WouldBlock, "its record is being written");
    text.trim().parse().map(Some).map_err(|_| unread())
}

/// What becomes readable when the attendant with this record ends.
pub(crate) fn attendant_end(dir: &Handle, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = attendant(dir, name)? else { return Ok(None) };
    let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Until this look, the record was locked: it cannot have become another process.
        Ok(process) => Ok(attendant(dir, name)?.map(|_| process)),
        Err(Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Ends an attendant, and removes its record and its log.
pub(crate) fn end(dir: &Handle, name: &OsStr) -> io::Result<()> {
    let begun = Instant::now();
    let mut killed = false;
    let mut asked = false;
    loop {
        let pid = match attendant(dir, name) {
            Ok(Some(pid)) => pid,
            Ok(None) => break,
            // Its record is being written.
            Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < GRACE => {
                std::thread::sleep(LOOK);
                continue;
            }
            Err(e) => return Err(e),
        };
        let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Between here and the look at the record it cannot have become another process: the lock was held.
            Ok(process) if attendant(dir, name)?.is_some() => {
                let late = begun.elapsed() > GRACE;
                if late && begun.elapsed() > GRACE + REMOVAL {
                    return Err(io::Error::new(ErrorKind::TimedOut, format!("process {pid} cannot be killed")));
                }
                let signal = if late { Signal::KILL } else { Signal::TERM };
                if (late && !killed) || !asked {
                    (killed, asked) = (late, true);
                    match pidfd_send_signal(&process, signal) {
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                wait_for(process.as_fd())?;
            }
            Ok(_) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    for file in [log_name(name), name.to_owned()] {
        match fs::unlinkat(fd(dir)?, &file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn wait_for(process: BorrowedFd<'_>) -> io::Result<()> {
    let wait = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
