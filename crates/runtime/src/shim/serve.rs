//! A shim's loop: output to log and clients, stdin from clients, requests, and the end of the container.
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    clients::{Client, Role},
    log::{Log, Stream},
};
use crate::{
    cgroup::Cgroups,
    contract::TermSize,
    init::{ChildMessage, Go},
    launch::{Launch, State},
    records,
    wire::{self, Exit, Reply, Request, frame},
};

/// Bytes waiting for the program's stdin above which clients are not read on.
const STDIN_BACKLOG_MAX: usize = 1 << 20;
/// How long output is awaited after the program's end: something outside the container may still hold the pipe.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How long slow clients get the rest after the end.
const GOODBYE_MAX: Duration = Duration::from_secs(10);

/// One output of the program.
pub(super) struct Output {
    file: std::fs::File,
    stream: Stream,
}

impl Output {
    pub(super) fn new(fd: OwnedFd, stream: Stream) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { file: fd.into(), stream })
    }

    /// What is there to read, empty if nothing is; `None` when no more will come.
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut chunk = vec![0; 32 << 10];
        match self.file.read(&mut chunk) {
            Ok(n) if n > 0 => {
                chunk.truncate(n);
                Some(chunk)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Some(Vec::new()),
            // A terminal says EIO when the last process has closed it.
            Ok(_) | Err(_) => None,
        }
    }
}

enum Phase {
    Created,
    /// Told to start; the child answers by running or by a message.
    Starting,
    Running,
}

pub(super) struct Shim {
    dir: PathBuf,
    launch: Launch,
    cgroups: Cgroups,
    state: State,
    listener: UnixListener,
    /// To the child until it has become the program.
    channel: Option<UnixStream>,
    log: Log,
    outputs: Vec<Output>,
    stdin: Option<std::fs::File>,
    stdin_queue: VecDeque<u8>,
    /// Close the program's stdin once the queue is written.
    stdin_ends: bool,
    clients: Vec<Client>,
    phase: Phase,
    start_error: Option<String>,
    children: SignalFd,
    ended: Option<(i32, Timestamp, Instant)>,
}

/// What a descriptor in the poll set belongs to.
enum Source {
    Children,
    Listener,
    Channel,
    Output(usize),
    Stdin,
    Client(usize),
}

impl Shim {
    #[expect(clippy::too_many_arguments, reason = "called once, with everything a container consists of")]
    pub(super) fn new(
        dir: PathBuf,
        launch: Launch,
        cgroups: Cgroups,
        state: State,
        listener: UnixListener,
        channel: UnixStream,
        log: Log,
        outputs: [Option<Output>; 2],
        stdin: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(stdin, true)?;
        }
        Ok(Self {
            dir,
            launch,
            cgroups,
            state,
            listener,
            channel: Some(channel),
            log,
            outputs: outputs.into_iter().flatten().collect(),
            stdin: stdin.map(Into::into),
            stdin_queue: VecDeque::new(),
            stdin_ends: false,
            clients: Vec::new(),
            phase: Phase::Created,
            start_error: None,
            children,
            ended: None,
        })
    }

    /// Takes over a connection and answers on it.
    pub(super) fn adopt(&mut self, mut client: Client, reply: &Reply) {
        client.reply(reply);
        self.clients.push(client);
    }

    /// Runs until the container has ended and everybody has been told.
    pub(super) fn serve(mut self) -> io::Result<()> {
        // A child that died before the signal was caught.
        self.reap();
        loop {
            if let Some((_, _, since)) = self.ended
                && (self.outputs.is_empty() || since.elapsed() > DRAIN_MAX)
            {
                return self.finish();
            }
            self.turn()?;
            self.clients.retain(|c| !c.gone);
        }
    }

    /// Waits for something and handles it.
    fn turn(&mut self) -> io::Result<()> {
        let timeout = self.ended.map(|_| Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
        let ready = {
            let (sources, mut fds) = self.interests();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
            sources.into_iter().zip(events).filter(|(_, e)| !e.is_empty()).collect::<Vec<_>>()
        };
        let (outputs, others): (Vec<_>, Vec<_>) = ready.into_iter().partition(|(s, _)| matches!(s, Source::Output(_)));
        self.read_outputs(
            outputs.into_iter().filter_map(|(s, _)| if let Source::Output(i) = s { Some(i) } else { None }),
        );
        // Clients are handled by index: go backwards, so that removing one moves none that is still to come.
        for (source, events) in others.into_iter().rev() {
            match source {
                Source::Children => {
                    while let Ok(Some(_)) = self.children.read_signal() {}
                    self.reap();
                }
                Source::Listener => {
                    if let Ok((socket, _)) = self.listener.accept() {
                        self.clients.push(Client::new(socket)?);
                    }
                }
                Source::Channel => self.channel_speaks(),
                Source::Output(_) => {}
                Source::Stdin => self.write_stdin(events),
                Source::Client(i) => self.serve_client(i, events),
            }
        }
        Ok(())
    }

    fn interests(&self) -> (Vec<Source>, Vec<PollFd<'_>>) {
        let mut all = vec![
            (Source::Children, PollFd::new(&self.children, PollFlags::IN)),
            (Source::Listener, PollFd::new(&self.listener, PollFlags::IN)),
        ];
        if let (Phase::Starting, Some(channel)) = (&self.phase, &self.channel) {
            all.push((Source::Channel, PollFd::new(channel, PollFlags::IN)));
        }
        // A client that reads slowly slows the container down, as a slow terminal would; one that is gone does not.
        if !self.clients.iter().any(Client::is_slow) {
            let outputs = self.outputs.iter().enumerate();
            all.extend(outputs.map(|(i, o)| (Source::Output(i), PollFd::new(&o.file, PollFlags::IN))));
        }
        if let (Some(stdin), false) = (&self.stdin, self.stdin_queue.is_empty()) {
            all.push((Source::Stdin, PollFd::new(stdin, PollFlags::OUT)));
        }
        let stdin_full = self.stdin_queue.len() > STDIN_BACKLOG_MAX;
        for (i, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            // Without IN an error or a hang-up is still reported.
            flags.set(PollFlags::IN, !(stdin_full && matches!(client.role, Role::Attach { stdin: true })));
            flags.set(PollFlags::OUT, client.wants_write());
            all.push((Source::Client(i), PollFd::new(&client.socket, flags)));
        }
        all.into_iter().unzip()
    }

    /// Collects every child that has ended; notes the container's own end.
    fn reap(&mut self) {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => {
                    let Some(pid) = status.pid() else { return };
                    if pid.as_raw() == self.state.init.pid
                        && let Some(code) = super::exit_code(status)
                    {
                        // The child's last word, if it could not become the program, came before its death.
                        if matches!(self.phase, Phase::Starting) {
                            self.channel_speaks();
                        }
                        self.ended = Some((code, Timestamp::now(), Instant::now()));
                        // In a shared PID namespace the program's children would live on, holding its output.
                        if !self.cgroups.kill(&self.launch.cgroup) {
                            eprintln!("some processes of the container do not die");
                        }
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// The child answers a start: by closing (it runs) or with what went wrong.
    fn channel_speaks(&mut self) {
        let Some(channel) = self.channel.take() else { return };
        match wire::recv::<ChildMessage>(&channel) {
            Ok(Some((ChildMessage::ExecFailed(text), _))) => self.start_error = Some(format!("{text}: unknown")),
            Ok(_) | Err(_) => {
                self.phase = Phase::Running;
                self.state.started_at = Some(Timestamp::now());
                if let Err(error) = records::write(&self.dir.join(records::STATE), &self.state, false) {
                    eprintln!("{error}");
                }
                self.answer_starts(&Reply::Done);
            }
        }
    }

    fn answer_starts(&mut self, reply: &Reply) {
        for client in self.clients.iter_mut().filter(|c| c.role == Role::Starting) {
            client.role = Role::Plain;
            client.reply(reply);
        }
    }

    /// Takes what the program wrote. stderr is read first and told last: whatever the program had written to stdout before it
    /// is then in hand, and stays before it in the log.
    fn read_outputs(&mut self, ready: impl DoubleEndedIterator<Item = usize>) {
        let taken: Vec<_> = ready.rev().map(|index| (index, self.outputs[index].take())).collect();
        for (index, chunk) in taken.iter().rev() {
            let stream = self.outputs[*index].stream;
            match chunk {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => self.tell_output(stream, bytes),
                None => self.log.finish(stream, Timestamp::now()),
            }
        }
        for (index, _) in taken.into_iter().filter(|(_, chunk)| chunk.is_none()) {
            self.outputs.remove(index);
        }
    }

    fn tell_output(&mut self, stream: Stream, bytes: &[u8]) {
        self.log.write(stream, Timestamp::now(), bytes);
        let kind = if stream == Stream::Stdout { frame::STDOUT } else { frame::STDERR };
        for client in self.clients.iter_mut().filter(|c| matches!(c.role, Role::Attach { .. })) {
            client.put(kind, bytes);
        }
    }

    fn write_stdin(&mut self, events: PollFlags) {
        if let Some(stdin) = &mut self.stdin {
            let (front, _) = self.stdin_queue.as_slices();
            match stdin.write(front) {
                Ok(n) => drop(self.stdin_queue.drain(..n)),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    if !events.contains(PollFlags::ERR) {
                        return;
                    }
                    self.stdin_queue.clear();
                }
                // Nobody reads any more.
                Err(_) => {
                    self.stdin_queue.clear();
                    self.stdin = None;
                }
            }
        }
        self.maybe_close_stdin();
    }

    fn maybe_close_stdin(&mut self) {
        if self.stdin_ends && self.stdin_queue.is_empty() {
            self.stdin = None;
        }
    }

    fn serve_client(&mut self, index: usize, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.clients[index].flush();
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            for (kind, payload) in self.clients[index].read() {
                self.handle(index, kind, payload);
            }
        }
        let client = &mut self.clients[index];
        if client.gone && client.role == (Role::Attach { stdin: true }) {
            client.role = Role::Plain;
            self.stdin_client_left();
        }
    }

    /// `stdin_once`: the first client that is done with stdin closes it for good.
    fn stdin_client_left(&mut self) {
        if self.launch.stdin_once {
            self.stdin_ends = true;
            self.maybe_close_stdin();
        }
    }

    fn handle(&mut self, index: usize, kind: u8, payload: Vec<u8>) {
        match kind {
            frame::REQUEST => match serde_json::from_slice(&payload) {
                Ok(request) => self.request(index, &request),
                Err(_) => self.clients[index].gone = true,
            },
            frame::STDIN if self.stdin.is_some() => {
                self.stdin_queue.extend(payload);
                self.write_stdin(PollFlags::OUT);
            }
            frame::STDIN_END if self.clients[index].role == (Role::Attach { stdin: true }) => {
                self.clients[index].role = Role::Attach { stdin: false };
                self.stdin_client_left();
            }
            frame::RESIZE => {
                if let (Ok(size), Some(terminal)) = (serde_json::from_slice(&payload), self.outputs.first()) {
                    set_size(&terminal.file, size);
                }
            }
            _ => {}
        }
    }

    fn request(&mut self, index: usize, request: &Request) {
        let ended = self.ended.is_some();
        let running = matches!(self.phase, Phase::Running) && !ended;
        let reply = match request {
            Request::Start if ended => Reply::NotRunning,
            Request::Start => match self.phase {
                Phase::Running => Reply::Done,
                Phase::Created | Phase::Starting => return self.start(index),
            },
            Request::Signal(_) if !running => Reply::NotRunning,
            Request::Signal(number) => {
                let signal = Signal::try_from(*number).unwrap_or(Signal::SIGTERM);
                let _ = nix::sys::signal::kill(Pid::from_raw(self.state.init.pid), signal);
                Reply::Done
            }
            Request::Kill => {
                // Its own child, not yet collected: the number cannot belong to another process.
                if !ended {
                    let _ = nix::sys::signal::kill(Pid::from_raw(self.state.init.pid), Signal::SIGKILL);
                }
                Reply::Done
            }
            Request::Attach { .. } if ended => Reply::NotRunning,
            Request::Attach { stdin } => {
                self.clients[index].role = Role::Attach { stdin: *stdin && self.stdin.is_some() };
                Reply::Done
            }
            Request::ReopenLog => match self.log.reopen() {
                Ok(()) => Reply::Done,
                Err(error) => Reply::CreateFailed(error.into()),
            },
            Request::Watch => {
                self.clients[index].role = Role::Watch;
                Reply::Done
            }
        };
        self.clients[index].reply(&reply);
    }

    fn start(&mut self, index: usize) {
        self.clients[index].role = Role::Starting;
        if matches!(self.phase, Phase::Created) {
            self.phase = Phase::Starting;
            // A child that is gone already is noticed by its death.
            if let Some(channel) = &self.channel {
                let _ = wire::send(channel, &Go, &[]);
            }
        }
    }

    /// Records the end, tells everybody, removes what the container had.
    fn finish(mut self) -> io::Result<()> {
        let Some((code, finished_at, _)) = self.ended else { return Ok(()) };
        for output in std::mem::take(&mut self.outputs) {
            self.log.finish(output.stream, Timestamp::now());
        }
        let exit = Exit {
            code: if self.start_error.is_some() { 128 } else { code },
            started_at: self.state.started_at,
            finished_at,
            oom_killed: code != 0 && self.cgroups.oom_kills(&self.launch.cgroup) > 0,
            start_error: self.start_error.take(),
        };
        records::write(&self.dir.join(records::EXIT), &exit, true)?;
        match &exit.start_error {
            Some(text) => self.answer_starts(&Reply::StartFailed(text.clone())),
            None => self.answer_starts(&Reply::NotRunning),
        }
        let payload = serde_json::to_vec(&exit)?;
        for client in self.clients.iter_mut().filter(|c| matches!(c.role, Role::Watch | Role::Attach { .. })) {
            client.put(frame::EXIT, &payload);
        }
        if let Err(error) = self.cgroups.remove(&self.launch.cgroup) {
            eprintln!("{error}");
        }
        self.say_goodbye();
        let _ = std::fs::remove_file(self.dir.join(records::SOCKET));
        Ok(())
    }

    /// Gives slow clients the rest.
    fn say_goodbye(&mut self) {
        let since = Instant::now();
        while self.clients.iter().any(Client::wants_write) && since.elapsed() < GOODBYE_MAX {
            let mut fds: Vec<_> = self
                .clients
                .iter()
                .filter(|c| c.wants_write())
                .map(|c| PollFd::new(&c.socket, PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
            drop(fds);
            self.clients.iter_mut().for_each(Client::flush);
        }
    }
}

/// Sets a terminal's size; the kernel tells the foreground processes.
pub(crate) fn set_size(terminal: &impl AsFd, size: TermSize) {
    let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}
