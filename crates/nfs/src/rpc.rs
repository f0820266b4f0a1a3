//! Remote procedure calls over TCP (RFC 5531): any number at a time over one connection, which is made anew when it breaks.
//!
//! - R1: a call is sent again with its own number after a reconnect, so that a server that still knows it answers as it did.
//! - R2: whoever waits is asked every [`SLICE`] whether he still wants to, wherever the wait is: for another's use of the
//!   connection, for the server's host, for the answer.
use std::{
    collections::HashMap,
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{self, AddressFamily, SocketFlags, SocketType, sockopt},
};

use crate::{
    find::LARGEST_PIECE,
    xdr::{Malformed, Reader, Writer, padding},
};

/// How long anybody waits without being asked whether he still wants to.
pub(crate) const SLICE: Duration = Duration::from_millis(50);
/// For one try to reach a host.
const CONNECT: Duration = Duration::from_secs(5);
/// Between tries, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Larger messages are not answers to anything that is asked here: a piece of a file, and what is said about it.
const LARGEST_MESSAGE: usize = (LARGEST_PIECE as usize) + (64 << 10);

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const AUTH_NONE: u32 = 0;
const AUTH_UNIX: u32 = 1;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    #[error("{addr} cannot be reached")]
    Connect {
        addr: SocketAddr,
        #[source]
        errno: io::Error,
    },
    #[error("the connection to {addr} broke")]
    Lost { addr: SocketAddr },
    #[error("{addr} does not answer")]
    TimedOut { addr: SocketAddr },
    /// Whoever waited wants it no more.
    #[error("given up")]
    GivenUp,
    #[error("the server refuses the call: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// In whose name a call is made, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential(Vec<u8>);

impl Credential {
    /// A user with groups, of which the protocol carries 16 besides the first.
    pub fn unix(uid: u32, gid: u32, groups: &[u32]) -> Self {
        let mut body = Writer::default();
        let groups = &groups[..groups.len().min(16)];
        body.u32(0).opaque(b"").u32(uid).u32(gid).u32(groups.len().try_into().expect("at most 16"));
        for group in groups {
            body.u32(*group);
        }
        let mut all = Writer::default();
        all.u32(AUTH_UNIX).opaque(&body.0);
        Self(all.0)
    }
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Procedure {
    pub program: u32,
    pub version: u32,
    pub number: u32,
}

/// How long a server is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Tries before an error is told; `None`: for ever.
    pub tries: Option<u32>,
    /// For one answer; then the connection is made anew.
    pub answer: Duration,
}

/// An answer: the result of the procedure.
#[derive(Debug)]
pub(crate) struct Answer {
    message: Vec<u8>,
    begin: usize,
    /// The call was sent more than once: the server may have done it before.
    pub repeated: bool,
}

impl Answer {
    pub fn reader(&self) -> Reader<'_> {
        Reader(&self.message[self.begin..])
    }
}

/// Asked while waiting: whether to give up.
pub(crate) type GiveUp<'a> = &'a (dyn Fn() -> bool + Sync);

/// Where a program listens. It may move when its server starts again.
pub(crate) type Locate = Box<dyn Fn(GiveUp<'_>) -> Result<SocketAddr, RpcError> + Send + Sync>;

/// One server.
pub(crate) struct Client {
    locate: Locate,
    patience: Patience,
    live: Mutex<Option<Arc<Live>>>,
    xid: AtomicU32,
}

/// One connection.
struct Live {
    addr: SocketAddr,
    stream: TcpStream,
    sending: Mutex<()>,
    waiting: Mutex<HashMap<u32, Arc<Slot>>>,
    dead: AtomicBool,
}

#[derive(Default)]
struct Slot {
    answer: Mutex<Option<Vec<u8>>>,
    woken: Condvar,
}

impl Client {
    pub fn new(locate: Locate, patience: Patience) -> Self {
        Self { locate, patience, live: Mutex::new(None), xid: AtomicU32::new(rand::random()) }
    }

    /// Calls a procedure. `data`, if any, follows `args` as counted bytes.
    pub fn call(
        &self,
        what: Procedure,
        who: &Credential,
        (args, data): (&Writer, Option<&[u8]>),
        give_up: GiveUp<'_>,
    ) -> Result<Answer, RpcError> {
        let xid = self.xid.fetch_add(1, Ordering::Relaxed);
        let message = encode(xid, what, who, args, data);
        let (mut tries, mut sent) = (0, 0);
        let mut pause = Duration::from_millis(100);
        loop {
            tries += 1;
            let tried = self.connection(give_up).and_then(|live| {
                sent += 1;
                let answer = live.exchange(xid, &message, data.unwrap_or_default(), self.patience.answer, give_up);
                if matches!(answer, Err(RpcError::Lost { .. } | RpcError::TimedOut { .. })) {
                    live.end();
                }
                answer
            });
            let error = match tried {
                Ok(message) => {
                    let begin = message.len() - accepted(&message)?.len();
                    return Ok(Answer { message, begin, repeated: sent > 1 });
                }
                Err(error @ (RpcError::GivenUp | RpcError::Refused(_) | RpcError::Malformed(_))) => return Err(error),
                Err(error) => error,
            };
            if self.patience.tries.is_some_and(|most| tries >= most) {
                return Err(error);
            }
            tracing::debug!(%error, "asking again");
            wait(pause, give_up)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The connection that there is, or a new one.
    fn connection(&self, give_up: GiveUp<'_>) -> Result<Arc<Live>, RpcError> {
        let mut live = lock(&self.live, give_up)?;
        if let Some(live) = live.as_ref().filter(|l| !l.dead.load(Ordering::Acquire)) {
            return Ok(Arc::clone(live));
        }
        let addr = (self.locate)(give_up)?;
        let made = Live::connect(addr, give_up)?;
        *live = Some(Arc::clone(&made));
        Ok(made)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(live) = self.live.get_mut().take() {
            live.end();
        }
    }
}

/// Sleeps, as long as whoever waits wants to.
fn wait(time: Duration, give_up: GiveUp<'_>) -> Result<(), RpcError> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        if give_up() {
            return Err(RpcError::GivenUp);
        }
        std::thread::sleep(left.min(SLICE));
    }
    Ok(())
}

pub(crate) fn lock<'a, T>(mutex: &'a Mutex<T>, give_up: GiveUp<'_>) -> Result<MutexGuard<'a, T>, RpcError> {
    loop {
        if let Some(guard) = mutex.try_lock_for(SLICE) {
            return Ok(guard);
        }
        if give_up() {
            return Err(RpcError::GivenUp);
        }
    }
}

/// A record with all but `data` and what follows it.
fn encode(xid: u32, what: Procedure, who: &Credential, args: &Writer, data: Option<&[u8]>) -> Vec<u8> {
    let mut message = Writer(Vec::with_capacity(args.0.len() + who.0.len() + 64));
    message.u32(0).u32(xid).u32(CALL).u32(RPC_VERSION).u32(what.program).u32(what.version).u32(what.number);
    message.0.extend_from_slice(&who.0);
    message.u32(AUTH_NONE).u32(0);
    message.0.extend_from_slice(&args.0);
    let mut length = message.0.len() - 4;
    if let Some(data) = data {
        message.u32(u32::try_from(data.len()).expect("messages are far below 4 GiB"));
        length += 4 + data.len() + padding(data.len());
    }
    let last_fragment = 1 << 31;
    let head = last_fragment | u32::try_from(length).expect("messages are far below 2 GiB");
    message.0[..4].copy_from_slice(&head.to_be_bytes());
    message.0
}

/// The result within an answer.
fn accepted(message: &[u8]) -> Result<&[u8], RpcError> {
    let mut r = Reader(message);
    let (_xid, kind) = (r.u32()?, r.u32()?);
    if kind != REPLY {
        return Err(Malformed.into());
    }
    if r.u32()? != 0 {
        return Err(RpcError::Refused(match (r.u32()?, r.u32()?) {
            (1, 5) => "this node's name or port is not trusted; allow it on the server (insecure ports, clients)",
            (1, _) => "it does not accept AUTH_SYS credentials; allow sec=sys for this export on the server",
            _ => "it speaks another version of RPC",
        }));
    }
    let (_flavor, _body) = (r.u32()?, r.opaque(400)?);
    match r.u32()? {
        0 => Ok(r.0),
        1 => Err(RpcError::Refused("it does not serve this program")),
        2 => Err(RpcError::Refused("it does not serve this version of the program")),
        3 => Err(RpcError::Refused("it does not serve this procedure")),
        4 => Err(RpcError::Refused("it does not understand the arguments")),
        _ => Err(RpcError::Refused("it failed by itself")),
    }
}

impl Live {
    fn connect(addr: SocketAddr, give_up: GiveUp<'_>) -> Result<Arc<Self>, RpcError> {
        let unreachable = |errno| RpcError::Connect { addr, errno };
        let stream = connect(addr, give_up)?;
        stream.set_nonblocking(false).map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        stream.set_write_timeout(Some(SLICE)).map_err(unreachable)?;
        let reading = stream.try_clone().map_err(unreachable)?;
        let live = Arc::new(Self {
            addr,
            stream,
            sending: Mutex::new(()),
            waiting: Mutex::default(),
            dead: AtomicBool::new(false),
        });
        let for_reader = Arc::clone(&live);
        let started = std::thread::Builder::new().name("answers".into()).spawn(move || for_reader.read(reading));
        started.map_err(unreachable)?;
        Ok(live)
    }

    /// Hands answers to those who wait, until the connection ends.
    fn read(&self, mut stream: TcpStream) {
        while let Ok(message) = record(&mut stream) {
            let Ok(xid) = Reader(&message).u32() else { break };
            // Nobody waits any more for the answer to a call that was given up.
            if let Some(slot) = self.waiting.lock().remove(&xid) {
                *slot.answer.lock() = Some(message);
                slot.woken.notify_one();
            }
        }
        self.end();
    }

    /// Ends the connection and wakes all who wait.
    fn end(&self) {
        self.dead.store(true, Ordering::Release);
        // It may have ended by itself.
        let _ = self.stream.shutdown(Shutdown::Both);
        for (_, slot) in self.waiting.lock().drain() {
            let _held = slot.answer.lock();
            slot.woken.notify_one();
        }
    }

    /// Sends a call and waits for its answer.
    fn exchange(
        &self,
        xid: u32,
        message: &[u8],
        data: &[u8],
        time: Duration,
        give_up: GiveUp<'_>,
    ) -> Result<Vec<u8>, RpcError> {
        let slot = Arc::new(Slot::default());
        self.waiting.lock().insert(xid, Arc::clone(&slot));
        let end = Instant::now() + time;
        let sent = self.send(message, data, end, give_up);
        let answer = sent.and_then(|()| {
            let mut answer = slot.answer.lock();
            loop {
                if let Some(answer) = answer.take() {
                    return Ok(answer);
                }
                if self.dead.load(Ordering::Acquire) {
                    return Err(RpcError::Lost { addr: self.addr });
                }
                slot.woken.wait_for(&mut answer, SLICE);
                if answer.is_none() && give_up() {
                    return Err(RpcError::GivenUp);
                }
                if answer.is_none() && Instant::now() > end {
                    return Err(RpcError::TimedOut { addr: self.addr });
                }
            }
        });
        self.waiting.lock().remove(&xid);
        answer
    }

    fn send(&self, message: &[u8], data: &[u8], end: Instant, give_up: GiveUp<'_>) -> Result<(), RpcError> {
        let _alone = lock(&self.sending, give_up)?;
        let lost = || RpcError::Lost { addr: self.addr };
        let mut parts = [IoSlice::new(message), IoSlice::new(data), IoSlice::new(&[0; 3][..padding(data.len())])];
        let mut rest = &mut parts[..];
        IoSlice::advance_slices(&mut rest, 0);
        let mut begun = false;
        while !rest.is_empty() {
            match (&self.stream).write_vectored(rest) {
                Ok(0) => return Err(lost()),
                Ok(n) => {
                    begun = true;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() > end {
                        return Err(RpcError::TimedOut { addr: self.addr });
                    }
                    // Half a call makes the connection useless for all others.
                    if give_up() {
                        if begun {
                            self.end();
                        }
                        return Err(RpcError::GivenUp);
                    }
                }
                Err(_) => return Err(lost()),
            }
        }
        Ok(())
    }
}

/// One record, of any number of fragments.
fn record(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 4];
        stream.read_exact(&mut head)?;
        let head = u32::from_be_bytes(head);
        let length = (head & !(1 << 31)) as usize;
        let begin = message.len();
        if begin + length > LARGEST_MESSAGE {
            return Err(ErrorKind::InvalidData.into());
        }
        message.resize(begin + length, 0);
        stream.read_exact(&mut message[begin..])?;
        if head >> 31 == 1 {
            return Ok(message);
        }
    }
}

/// Connects from a port that only root can have, which many exports ask for; from any where all are taken.
fn connect(addr: SocketAddr, give_up: GiveUp<'_>) -> Result<TcpStream, RpcError> {
    let unreachable = |errno: Errno| RpcError::Connect { addr, errno: errno.into() };
    let mut last = Errno::ADDRINUSE;
    for attempt in 0..24 {
        let socket = socket(addr).map_err(unreachable)?;
        if attempt < 20 {
            let port = rand::random_range(600..1024);
            let any: SocketAddr = match addr {
                SocketAddr::V4(_) => ([0; 4], port).into(),
                SocketAddr::V6(_) => ([0_u16; 8], port).into(),
            };
            match net::bind(&socket, &any) {
                Ok(()) | Err(Errno::ACCESS) => {}
                Err(Errno::ADDRINUSE) => continue,
                Err(errno) => return Err(unreachable(errno)),
            }
        }
        match finish(&socket, addr, give_up)? {
            Ok(()) => return Ok(TcpStream::from(socket)),
            // The same pair of ports was in use a moment ago.
            Err(errno @ (Errno::ADDRNOTAVAIL | Errno::ADDRINUSE)) => last = errno,
            Err(errno) => return Err(unreachable(errno)),
        }
    }
    Err(unreachable(last))
}

fn socket(addr: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(socket)
}

/// Waits for the other side, as long as whoever waits wants to.
fn finish(socket: &OwnedFd, addr: SocketAddr, give_up: GiveUp<'_>) -> Result<Result<(), Errno>, RpcError> {
    match net::connect(socket, &addr) {
        Ok(()) => return Ok(Ok(())),
        Err(Errno::INPROGRESS) => {}
        Err(errno) => return Ok(Err(errno)),
    }
    let end = Instant::now() + CONNECT;
    let slice = Timespec { tv_sec: 0, tv_nsec: SLICE.as_nanos().try_into().expect("less than a second") };
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&slice)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(sockopt::socket_error(socket).and_then(|outcome| outcome)),
            Err(errno) => return Ok(Err(errno)),
        }
        if give_up() {
            return Err(RpcError::GivenUp);
        }
        if Instant::now() > end {
            return Ok(Err(Errno::TIMEDOUT));
        }
    }
}
