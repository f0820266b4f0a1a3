//! One address for several portals, so that a session goes on at another portal when its own is lost.
//!
//! QEMU's driver goes back for ever to the one portal that it was told, logs in there again and repeats what was not answered.
//! It is told an address of this process, which passes everything on to the first portal that answers.
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// How long a portal may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);
const STACK_BYTES: usize = 256 << 10;
const BUFFER_BYTES: usize = 256 << 10;

/// Passes connections on. Its threads live as long as the process.
pub(crate) struct Relay {
    address: SocketAddr,
    ways: Arc<Ways>,
}

struct Ways {
    portals: Vec<String>,
    choice: Mutex<Choice>,
}

#[derive(Clone, Copy)]
struct Choice {
    /// Where the next connection is tried first.
    next: usize,
    /// The only portal that is to be tried now.
    only: Option<usize>,
}

impl Relay {
    pub(crate) fn new(portals: Vec<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ways = Arc::new(Ways { portals, choice: Mutex::new(Choice { next: 0, only: None }) });
        let shared = ways.clone();
        thread::Builder::new().name("relay".into()).stack_size(STACK_BYTES).spawn(move || {
            for near in listener.incoming() {
                let ways = shared.clone();
                let carried = near.and_then(|near| {
                    thread::Builder::new().name("way".into()).stack_size(STACK_BYTES).spawn(move || ways.carry(&near))
                });
                if carried.is_err() {
                    // Out of descriptors or threads; who was refused comes back.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(Self { address, ways })
    }

    /// What stands for the portals.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets new connections go to this portal and to no other; `None`: to any.
    pub(crate) fn only(&self, portal: Option<usize>) {
        let mut choice = self.ways.choice();
        choice.only = portal;
        choice.next = portal.unwrap_or(choice.next);
    }
}

impl Ways {
    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes everything on in both ways until one of the sides has had enough.
    fn carry(&self, near: &TcpStream) {
        // Without a portal the connection ends here, as if it were refused.
        let Some((portal, far)) = self.first_that_answers() else { return };
        thread::scope(|scope| {
            let up = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || pass(near, &far));
            if up.is_ok() {
                pass(&far, near);
            }
            close(near, &far);
        });
        let mut choice = self.choice();
        if choice.only.is_none() && choice.next == portal {
            choice.next = (portal + 1) % self.portals.len();
        }
    }

    fn first_that_answers(&self) -> Option<(usize, TcpStream)> {
        let Choice { next, only } = *self.choice();
        let all = (next..self.portals.len()).chain(0..next);
        for portal in all.filter(|portal| only.is_none_or(|only| only == *portal)) {
            match reach(&self.portals[portal]) {
                Ok(far) => {
                    let mut choice = self.choice();
                    if choice.only.is_none() && choice.next != portal {
                        choice.next = portal;
                    }
                    return Some((portal, far));
                }
                // Standard error is this process's own log file.
                Err(error) => eprintln!("portal {} cannot be reached: {error}", self.portals[portal]),
            }
        }
        None
    }
}

/// Connects to a portal.
pub(crate) fn reach(portal: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its address is not known");
    for address in portal.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Passes on what comes from one side until that ends or the other takes no more; then neither gets any further.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    // What waits to be sent together with more would make each request slow.
    let _ = to.set_nodelay(true);
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(bytes) if to.write_all(&buffer[..bytes]).is_err() => break,
            Ok(_) => {}
        }
    }
    close(from, to);
}

fn close(one: &TcpStream, other: &TcpStream) {
    for stream in [one, other] {
        // One that is closed already is as it should be.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A portal that answers everything with its name.
    fn portal(name: &'static [u8]) -> (String, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let own = listener.try_clone().expect("a copy");
        thread::spawn(move || {
            while let Ok((mut stream, _)) = own.accept() {
                let mut asked = [0; 3];
                while stream.read_exact(&mut asked).is_ok() {
                    if &asked == b"end" || stream.write_all(name).is_err() {
                        break;
                    }
                }
            }
        });
        (address, listener)
    }

    fn ask(stream: &mut TcpStream) -> String {
        let mut said = [0; 1];
        stream.write_all(b"who").and_then(|()| stream.read_exact(&mut said)).expect("an answer");
        String::from_utf8_lossy(&said).into_owned()
    }

    #[test]
    fn a_lost_portal_is_followed_by_the_next_that_answers() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
        let ((a, _a), (b, _b)) = (portal(b"a"), portal(b"b"));
        let relay = Relay::new(vec![closed.to_string(), a, b]).expect("a relay");
        let connect = || TcpStream::connect(relay.address()).expect("the relay answers");
        let mut first = connect();
        assert_eq!(ask(&mut first), "a");
        // The portal ends it.
        first.write_all(b"end").expect("write");
        assert_eq!(first.read(&mut [0; 1]).expect("an end"), 0);
        let mut second = (0..100).map(|_| connect()).find(|s| ask(&mut s.try_clone().expect("a copy")) == "b");
        assert!(second.take().is_some(), "the other portal is never asked");
        relay.only(Some(1));
        assert_eq!(ask(&mut connect()), "a");
        relay.only(Some(0));
        assert_eq!(connect().read(&mut [0; 1]).expect("an end"), 0, "that one does not answer");
        relay.only(None);
        assert_eq!(ask(&mut connect()), "a");
    }
}
