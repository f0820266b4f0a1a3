//! nfs-ganesha with its portmapper, in a network namespace of its own that this machine reaches by one address.
use std::{
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::common::until;

/// A server with the directory `export`. Dropping it ends it and removes all of it.
pub struct Server {
    pub dir: tempfile::TempDir,
    namespace: String,
    pub addr: Ipv4Addr,
    child: Option<Child>,
    /// When it was started, in seconds: what tells its lives apart.
    started: u64,
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("run {program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Sends a signal to a server with all its processes. Not by a program: starting one closes copies of all descriptors, which
/// syncs what was written to them.
fn signal(group: &Child, signal: Signal) {
    let group = Pid::from_raw(group.id().cast_signed()).expect("a process");
    kill_process_group(group, signal).expect("signal the server");
}

impl Server {
    /// The network and the directory; nothing listens yet.
    pub fn down() -> Self {
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let (process, nth) = (std::process::id(), SERVERS.fetch_add(1, Ordering::Relaxed));
        let id = format!("{process}-{nth}");
        // Of the range for benchmarks, four addresses for each server of the tests.
        let net = 0xc612_0000 | (((process * 16 + nth) % 0x7fff) << 2);
        let (host, addr) = (Ipv4Addr::from(net | 1), Ipv4Addr::from(net | 2));
        let (namespace, outer, inner) = (format!("hfnfs{id}"), format!("hn{id}"), format!("hm{id}"));
        let dir = tempfile::Builder::new().prefix("holdfast-nfs-").tempdir().expect("temporary directory");
        for name in ["export", "records"] {
            std::fs::create_dir(dir.path().join(name)).expect("make a directory");
        }
        let server = Self { dir, namespace: namespace.clone(), addr, child: None, started: 0 };
        run("ip", &["netns", "add", &namespace]);
        run("ip", &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &namespace]);
        run("ip", &["addr", "add", &format!("{host}/30"), "dev", &outer]);
        run("ip", &["link", "set", &outer, "up"]);
        run("ip", &["-n", &namespace, "addr", "add", &format!("{addr}/30"), "dev", &inner]);
        run("ip", &["-n", &namespace, "link", "set", &inner, "up"]);
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        let top = server.dir.path().display().to_string();
        let configuration = format!(
            "NFS_CORE_PARAM {{ Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }}\n\
             NFSV4 {{ RecoveryRoot = {top}/records; RecoveryBackend = fs; Graceless = true; }}\n\
             EXPORT {{ Export_Id = 1; Path = {top}/export; Pseudo = /e; Protocols = 3; Access_Type = RW; \
             Squash = No_Root_Squash; SecType = sys; Attr_Expiration_Time = 0; FSAL {{ Name = VFS; }} }}\n\
             LOG {{ Default_Log_Level = CRIT; }}\n"
        );
        std::fs::write(server.dir.path().join("ganesha.conf"), configuration).expect("write the configuration");
        server
    }

    pub fn up() -> Self {
        let mut server = Self::down();
        server.start();
        server
    }

    /// The exported directory, here and for clients.
    pub fn export(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    pub fn path(&self) -> String {
        self.export().display().to_string()
    }

    pub fn start(&mut self) {
        until("another second", || (seconds() > self.started).then_some(()));
        let top = self.dir.path().display();
        let script = format!(
            "mount -t tmpfs none /run && mkdir /run/rpcbind /run/ganesha && chmod 777 /run/rpcbind && rpcbind -f & \
             for i in $(seq 200); do rpcinfo -p 127.0.0.1 >/dev/null 2>&1 && break; sleep 0.05; done; \
             exec ganesha.nfsd -F -f {top}/ganesha.conf -L {top}/ganesha.log -p {top}/ganesha.pid"
        );
        // Both share a mount namespace, where the portmapper's socket is.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "sh", "-c", &script]).process_group(0);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the server");
        (self.child, self.started) = (Some(child), seconds());
        until("the server answers", || {
            let out = Command::new("rpcinfo").args(["-t", &self.addr.to_string(), "mountd", "3"]).output();
            out.expect("run rpcinfo").status.success().then_some(())
        });
    }

    /// Kills it: what it has not put on its disk is lost to it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::KILL);
            child.wait().expect("wait for the server");
        }
    }

    /// Lets it answer nothing, or again.
    pub fn hang(&self, hang: bool) {
        let child = self.child.as_ref().expect("it runs");
        signal(child, if hang { Signal::STOP } else { Signal::CONT });
        // One thread after the other stops; what comes meanwhile may be answered.
        until("all of it has stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("list its threads").flatten();
            let mut states = threads.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
            (!hang || states.all(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))).then_some(())
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

/// The processes that serve a mount below a directory.
pub fn attendants(below: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).into_owned();
        let mut words = command.split('\0');
        if words.next() == Some("holdfast-nfs") && words.any(|w| Path::new(w).starts_with(below)) {
            found.extend(entry.file_name().to_string_lossy().parse::<u32>());
        }
    }
    found
}

/// What is mounted below a directory.
pub fn mounts(below: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
    let points = table.lines().filter_map(|l| l.split(' ').nth(4));
    points.filter(|p| Path::new(p).starts_with(below)).map(str::to_owned).collect()
}
