//! Real repositories, made by git itself, and real servers of them on free ports: `git daemon` and smart HTTP.
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Runs git in a directory, without anybody's configuration. Returns what it printed.
pub fn git(dir: &Path, args: &[&str]) -> String {
    git_with(dir, args, "")
}

/// [`git`] with something to read.
pub fn git_with(dir: &Path, args: &[&str], input: &str) -> String {
    let mut child = plain(Command::new("git").args(args).current_dir(dir))
        .env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z")
        .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start git");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("give git its input");
    let out = child.wait_with_output().expect("wait for git");
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

fn plain(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_COUNT", "3")
        .envs([("GIT_CONFIG_KEY_0", "user.name"), ("GIT_CONFIG_VALUE_0", "A Tester")])
        .envs([("GIT_CONFIG_KEY_1", "user.email"), ("GIT_CONFIG_VALUE_1", "tester@example.com")])
        .envs([("GIT_CONFIG_KEY_2", "safe.directory"), ("GIT_CONFIG_VALUE_2", "*")])
}

/// Makes the repository `name` in `dir`: branches `main` and `dev`, the light tag `v1` and the annotated `v2`, a program, a
/// link and a directory. Returns the commits of `v1` and of `main`.
pub fn repository(dir: &Path, name: &str) -> (String, String) {
    let work = dir.join(format!("{name}.work"));
    std::fs::create_dir_all(work.join("sub")).expect("make a working tree");
    git(&work, &["init", "-q", "-b", "main"]);
    let write = |file: &str, text: &str| std::fs::write(work.join(file), text).expect("write a file");
    write("README", "one\n");
    write("run.sh", "#!/bin/sh\necho ran\n");
    write("sub/deep", "deep\n");
    std::os::unix::fs::symlink("README", work.join("link")).expect("make a link");
    git(&work, &["add", "."]);
    git(&work, &["update-index", "--chmod=+x", "run.sh"]);
    git(&work, &["commit", "-qm", "one"]);
    git(&work, &["tag", "v1"]);
    let first = git(&work, &["rev-parse", "HEAD"]);
    git(&work, &["checkout", "-q", "-b", "dev"]);
    write("README", "dev\n");
    git(&work, &["commit", "-qam", "dev"]);
    git(&work, &["checkout", "-q", "main"]);
    write("README", "two\n");
    git(&work, &["commit", "-qam", "two"]);
    git(&work, &["tag", "-a", "v2", "-m", "the second"]);
    let last = git(&work, &["rev-parse", "HEAD"]);
    publish(dir, name);
    (first, last)
}

/// Makes `NAME.git` of the working tree `NAME.work`, anew.
pub fn publish(dir: &Path, name: &str) {
    let bare = dir.join(format!("{name}.git"));
    let _ = std::fs::remove_dir_all(&bare);
    git(dir, &["clone", "-q", "--bare", "--no-hardlinks", &format!("{name}.work"), &format!("{name}.git")]);
}

/// Makes the repository `name` whose only commit has a tree of these entries, as `git mktree` reads them, `BLOB` being a
/// file and `EVIL` a tree of one file `post-checkout`; what git itself would never make.
pub fn hostile(dir: &Path, name: &str, trees: &[(&str, &str)]) {
    let bare = dir.join(format!("{name}.git"));
    std::fs::create_dir_all(&bare).expect("make a directory");
    git(&bare, &["init", "-q", "--bare", "-b", "main"]);
    let blob = git_with(&bare, &["hash-object", "-w", "--stdin"], "#!/bin/sh\ntouch /canary\n");
    let mut known = vec![("BLOB".to_owned(), blob)];
    for (tree, entries) in trees {
        let mut raw = Vec::new();
        for line in entries.lines() {
            let (mode, rest) = line.split_once(' ').expect("mode, object, name");
            let (object, entry) = rest.split_once(' ').expect("object and name");
            let id = match object.strip_prefix('>') {
                Some(target) => git_with(&bare, &["hash-object", "-w", "--stdin"], target),
                None => known.iter().find(|(n, _)| n == object).expect("made before").1.clone(),
            };
            raw.extend(format!("{mode} {entry}\0").bytes());
            raw.extend((0..20).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).expect("hexadecimal")));
        }
        let file = bare.join("tree");
        std::fs::write(&file, raw).expect("write a tree");
        let id = git(&bare, &["hash-object", "-w", "-t", "tree", "--literally", "tree"]);
        std::fs::remove_file(file).expect("remove it");
        known.push(((*tree).to_owned(), id));
    }
    let commit = git(&bare, &["commit-tree", "-m", "hostile", &known.last().expect("a tree").1]);
    git(&bare, &["update-ref", "refs/heads/main", &commit]);
}

/// A server of the repositories in one directory. Dropping it ends it.
pub struct GitServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl GitServer {
    /// `git daemon`, one process per connection.
    pub fn daemon(repositories: &Path) -> Self {
        Self::daemon_at("127.0.0.1:0", repositories)
    }

    /// [`GitServer::daemon`] on a certain port.
    pub fn daemon_at(address: &str, repositories: &Path) -> Self {
        let base = repositories.to_path_buf();
        Self::serve(address, move |stream| {
            let pass = || Stdio::from(std::os::fd::OwnedFd::from(stream.try_clone().expect("one more descriptor")));
            let served = plain(&mut Command::new("git"))
                .args(["daemon", "--inetd", "--export-all", "--informative-errors"])
                .arg(format!("--base-path={}", base.display()))
                .arg(&base)
                .stdin(pass())
                .stdout(pass())
                .stderr(Stdio::null())
                .status();
            drop(served);
        })
    }

    /// `git http-backend` behind a small server. With a user and a password only they get in. Paths below `/moved/` lead
    /// to the same without it, on `elsewhere` if that is another server.
    pub fn http(repositories: &Path, login: Option<(&str, &str)>, elsewhere: Option<SocketAddr>) -> Self {
        let base = repositories.to_path_buf();
        let login = login.map(|(user, password)| base64(format!("{user}:{password}").as_bytes()));
        Self::serve("127.0.0.1:0", move |stream| {
            let here = elsewhere.or_else(|| stream.local_addr().ok());
            let _ = http(stream, &base, login.as_deref(), here);
        })
    }

    /// [`GitServer::http`] over TLS. Also returns the certificate to trust, as a file has it.
    pub fn https(repositories: &Path, login: Option<(&str, &str)>) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|c| c.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key));
        let config = Arc::new(config.expect("a TLS server"));
        let base = repositories.to_path_buf();
        let login = login.map(|(user, password)| base64(format!("{user}:{password}").as_bytes()));
        let server = Self::serve("127.0.0.1:0", move |stream| {
            let Ok(tls) = rustls::ServerConnection::new(config.clone()) else { return };
            let _ = http(rustls::StreamOwned::new(tls, stream), &base, login.as_deref(), None);
        });
        (server, made.cert.pem())
    }

    /// Takes connections and never says a word.
    pub fn silent() -> Self {
        Self::serve("127.0.0.1:0", |mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    /// Answers every connection with these bytes.
    pub fn saying(bytes: &'static [u8]) -> Self {
        Self::serve("127.0.0.1:0", |mut stream| {
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(bytes));
        })
    }

    fn serve(address: &str, act: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("listen");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, act) = (stop.clone(), Arc::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let act = act.clone();
                std::thread::spawn(move || stream.map(|stream| act(stream)));
            }
        });
        Self { address, stop }
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// One request, answered by git's CGI program.
fn http(
    stream: impl Read + Write,
    base: &Path,
    login: Option<&str>,
    elsewhere: Option<SocketAddr>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    if header("transfer-encoding") == "chunked" {
        body = chunks(&mut reader)?;
    }
    let out = reader.get_mut();
    if let (Some(rest), Some(to)) = (target.strip_prefix("/moved/"), elsewhere) {
        let moved = format!("HTTP/1.1 302 Found\r\nlocation: http://{to}/{rest}\r\n");
        return write!(out, "{moved}content-length: 0\r\nconnection: close\r\n\r\n");
    }
    if let Some(status) = target.strip_prefix("/status/") {
        let status = status.split('/').next().unwrap_or_default();
        return write!(out, "HTTP/1.1 {status} S\r\ncontent-length: 6\r\nconnection: close\r\n\r\nCANARY");
    }
    if login.is_some_and(|login| header("authorization") != format!("Basic {login}")) {
        let wanted = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"git\"\r\n";
        return write!(out, "{wanted}content-length: 0\r\nconnection: close\r\n\r\n");
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut child = plain(&mut Command::new("git"))
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", base)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || input.write_all(&body));
    let said = child.wait_with_output()?;
    let _ = writer.join();
    let end = said.stdout.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0);
    let head = String::from_utf8_lossy(&said.stdout[..end]).into_owned();
    let status = head.lines().find_map(|l| l.strip_prefix("Status: ")).unwrap_or("200 OK");
    let content = &said.stdout[(end + 4).min(said.stdout.len())..];
    write!(out, "HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len())?;
    out.write_all(content)?;
    out.flush()
}

fn chunks(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let mut chunk = vec![0; length + 2];
        reader.read_exact(&mut chunk)?;
        if length == 0 {
            return Ok(body);
        }
        body.extend(&chunk[..length]);
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let number = part.iter().chain([0, 0].iter()).take(3).fold(0, |n, b| n << 8 | u32::from(*b));
        for i in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= part.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// Where the repositories of a test are: readable by everybody, as the process that clones needs it.
pub fn repositories(above: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let dir = above.join("repositories");
    std::fs::create_dir_all(&dir).expect("make a directory");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("open it");
    dir
}
