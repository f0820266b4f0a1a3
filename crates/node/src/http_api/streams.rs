//! `exec`, `attach` and `portForward`: joins a client's streams to the runtime's.
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use base::chain;
use futures::StreamExt;
use runtime::{ContainerId, ContainerState, ExecSpec, PodUid, Runtime, RuntimeError, Session, TermSize};
use streaming::{Client, Forward, Outcome, StreamError, Wanted};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Refusal, query::Query};
use crate::{Node, agent::worker::View};

/// After the process has ended, output of those it left behind is waited for only while some still comes.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

type Params = Path<HashMap<String, String>>;

fn refused(error: &StreamError) -> Refusal {
    Refusal(error.status(), chain(error))
}

fn find(node: &Node, params: &HashMap<String, String>) -> Result<View, Refusal> {
    let get = |key: &str| params.get(key).map(String::as_str).unwrap_or_default();
    let (view, _) = node
        .find(get("namespace"), get("pod"))
        .filter(|(v, _)| params.get("uid").is_none_or(|uid| v.pod.metadata.uid.as_ref() == Some(uid)))
        .ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "pod does not exist".into()))?;
    Ok(view)
}

fn running(view: &View, name: &str) -> Result<ContainerId, Refusal> {
    let mut all = view.sandbox.iter().flat_map(|s| &s.containers);
    let found = all.find(|c| c.name == name && matches!(c.state, ContainerState::Running { .. }));
    let none = || Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({name:?})"));
    found.map(|c| c.id.clone()).ok_or_else(none)
}

fn wanted(query: &Query) -> Result<Wanted, Refusal> {
    let tty = query.flag(&["tty"]);
    let wanted = Wanted {
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        // With a terminal there is one output stream.
        stderr: query.flag(&["error", "stderr"]) && !tty,
        tty,
    };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal(StatusCode::BAD_REQUEST, text.into()));
    }
    Ok(wanted)
}

pub async fn exec(
    State(node): State<Arc<Node>>,
    Path(params): Params,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let view = find(&node, &params)?;
    let id = running(&view, params.get("container").map(String::as_str).unwrap_or_default())?;
    let command = query.all("command");
    if command.is_empty() {
        return Err(Refusal(StatusCode::BAD_REQUEST, "you must specify a command".into()));
    }
    let wanted = wanted(&query)?;
    let (response, opening) = streaming::exec(request, wanted).map_err(|e| refused(&e))?;
    let (runtime, closing) = (node.shared.runtime.clone(), node.closing.clone());
    node.sessions.spawn(async move {
        let client = match opening.await {
            Ok(client) => client,
            Err(error) => return tracing::debug!(error = chain(&error), "a client left before its exec began"),
        };
        let spec = ExecSpec { command, tty: wanted.tty, stdin: wanted.stdin };
        match runtime.exec(&id, &spec).await {
            Ok(session) => join(client, session, false, &closing).await,
            Err(error) => fail(client, "executing command", &error),
        }
    });
    Ok(response)
}

pub async fn attach(
    State(node): State<Arc<Node>>,
    Path(params): Params,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let view = find(&node, &params)?;
    let id = running(&view, params.get("container").map(String::as_str).unwrap_or_default())?;
    let wanted = wanted(&query)?;
    let (response, opening) = streaming::exec(request, wanted).map_err(|e| refused(&e))?;
    let (runtime, closing) = (node.shared.runtime.clone(), node.closing.clone());
    node.sessions.spawn(async move {
        let client = match opening.await {
            Ok(client) => client,
            Err(error) => return tracing::debug!(error = chain(&error), "a client left before its attach began"),
        };
        match runtime.attach(&id, wanted.stdin).await {
            Ok(session) => join(client, session, true, &closing).await,
            Err(error) => fail(client, "attaching", &error),
        }
    });
    Ok(response)
}

fn fail(client: Client, doing: &str, error: &RuntimeError) {
    // The client may be gone; then nobody wants to know.
    let _ = client.done.send(Outcome::Failed(format!("error {doing} in container: {}", chain(error))));
}

/// Carries bytes both ways until the process has ended or the client has left.
async fn join(client: Client, session: Session, attached: bool, closing: &CancellationToken) {
    let Client { stdin, stdout, stderr, resize, mut done } = client;
    let Session { stdin: input, stdout: output, stderr: errors, resize: sizes, exit } = session;
    let moved = Arc::new(AtomicU64::new(0));
    let mut inward = JoinSet::new();
    if let (Some(mut from), Some(mut to)) = (stdin, input) {
        inward.spawn(async move {
            // Either side may close first; the process sees the end of its input when `to` is dropped.
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
    if let (Some(mut from), Some(to)) = (resize, sizes) {
        inward.spawn(async move {
            while let Some((width, height)) = from.recv().await {
                if to.send(TermSize { width, height }).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut outward = JoinSet::new();
    for (from, to) in [(output, stdout), (errors, stderr)] {
        let Some(from) = from else { continue };
        outward.spawn(pump(from, to, moved.clone()));
    }
    let outcome = tokio::select! {
        code = exit => match code {
            Ok(code) => Outcome::Exited(if attached { 0 } else { code }),
            Err(_) if attached => Outcome::Exited(0),
            Err(_) => Outcome::Failed("the session with the container broke off".into()),
        },
        () = closing.cancelled() => {
            // The client may have left as well.
            let _ = done.send(Outcome::Failed("the node's agent is shutting down".into()));
            return;
        }
        // The client left: dropping the session ends the process, or detaches.
        () = done.closed() => return,
    };
    drain(&mut outward, &moved).await;
    // Told and closed, or the client has left.
    let _ = done.send(outcome);
}

async fn drain(outward: &mut JoinSet<()>, moved: &AtomicU64) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        tokio::select! {
            ended = outward.join_next() => if ended.is_none() { return },
            () = tokio::time::sleep(DRAIN_IDLE) => if moved.load(Ordering::Relaxed) == before { return },
        }
    }
}

/// Copies output. Without anybody to send it to it is read nevertheless: the process must not be held up.
async fn pump(mut from: runtime::Reader, mut to: Option<streaming::Output>, moved: Arc<AtomicU64>) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        if let Some(out) = &mut to
            && (out.write_all(&buffer[..n]).await.is_err() || out.flush().await.is_err())
        {
            to = None;
        }
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
    if let Some(out) = &mut to {
        let _ = out.shutdown().await;
    }
}

pub async fn port_forward(
    State(node): State<Arc<Node>>,
    Path(params): Params,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let view = find(&node, &params)?;
    let uid = PodUid(view.pod.metadata.uid.clone().unwrap_or_default());
    if !view.sandbox.as_ref().is_some_and(|s| s.ready) {
        let phase = view.status.phase.unwrap_or_else(|| "Pending".into());
        let text = format!("unable to forward port because pod is not running. Current status={phase}");
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    let (response, opening) = streaming::port_forward(request).map_err(|e| refused(&e))?;
    let (runtime, closing) = (node.shared.runtime.clone(), node.closing.clone());
    node.sessions.spawn(async move {
        let mut forwards = match opening.await {
            Ok(forwards) => forwards,
            Err(error) => return tracing::debug!(error = chain(&error), "a client left before its forwarding began"),
        };
        // Connections end with the client's own.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                forward = forwards.next() => match forward {
                    Some(forward) => drop(connections.spawn(connect(runtime.clone(), uid.clone(), forward))),
                    None => return,
                },
                () = closing.cancelled() => return,
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Ok(response)
}

async fn connect(runtime: Arc<dyn Runtime>, uid: PodUid, forward: Forward) {
    let Forward { port, mut stream, error } = forward;
    match runtime.dial(&uid, port).await {
        Ok(mut socket) => {
            if let Err(why) = exchange(&mut stream, &mut socket).await {
                tracing::debug!(%why, port, "a forwarded connection broke off");
            }
        }
        Err(why) => {
            let text = format!("error forwarding port {port} to pod {}, uid : {}", uid.0, refusal(&why, port));
            let _ = error.send(text);
        }
    }
}

/// How long a client may go on sending to a pod that has closed its side, as upstream's runtimes.
const LINGER: Duration = Duration::from_secs(1);

/// Carries bytes both ways. kubectl keeps its local connection open until the whole forward has ended, and its user may wait
/// for just that: so the pod's end of file ends the forward, after a moment for what the client still has to say.
async fn exchange(client: &mut (impl AsyncRead + AsyncWrite + Unpin), pod: &mut TcpStream) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pod, mut to_pod) = pod.split();
    let down = async {
        tokio::io::copy(&mut from_pod, &mut to_client).await?;
        to_client.shutdown().await
    };
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_pod).await?;
        to_pod.shutdown().await
    };
    tokio::pin!(down, up);
    tokio::select! {
        ended = &mut down => {
            ended?;
            tokio::time::timeout(LINGER, up).await.unwrap_or(Ok(()))
        }
        ended = &mut up => {
            ended?;
            down.await
        }
    }
}

/// Upstream's words for a port that nobody listens on.
fn refusal(error: &RuntimeError, port: u16) -> String {
    match error {
        RuntimeError::Io { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused => format!(
            "failed to connect to localhost:{port} inside namespace, IPv4: dial tcp4 127.0.0.1:{port}: connect: \
             connection refused"
        ),
        other => chain(other),
    }
}
