use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use super::{client, refusal, serve};
use crate::{Client, Outcome, Wanted, exec, spdy::Frame};

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

/// Serves exec with a command of the test's own.
async fn command<F, R>(wanted: Wanted, run: F) -> SocketAddr
where
    F: Fn(Client) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    serve(move |request| match exec(request, wanted) {
        Err(error) => refusal(&error),
        Ok((response, opening)) => {
            let run = run.clone();
            tokio::spawn(async move { run(opening.await.unwrap()).await });
            response
        }
    })
    .await
}

/// Writes stdin to stdout and its length to stderr, exits with 3.
async fn shout(client: Client) {
    let mut input = Vec::new();
    client.stdin.unwrap().read_to_end(&mut input).await.unwrap();
    client.stdout.unwrap().write_all(&input).await.unwrap();
    let mut stderr = client.stderr.unwrap();
    stderr.write_all(input.len().to_string().as_bytes()).await.unwrap();
    client.done.send(Outcome::Exited(3)).unwrap();
}

/// Writes much and is done, without closing its streams.
async fn flood(client: Client) {
    let mut stdout = client.stdout.unwrap();
    stdout.write_all(&vec![7; 3_000_000]).await.unwrap();
    client.done.send(Outcome::Exited(0)).unwrap();
}

/// All channels of a WebSocket until its end, and the code of its close.
async fn drain(socket: &mut WebSocketStream<TcpStream>) -> (Vec<Vec<u8>>, Option<CloseCode>) {
    let mut channels = vec![Vec::new(); 5];
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(close) => return (channels, close.map(|close| close.code)),
            _ => {}
        }
    }
    (channels, None)
}

fn status(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn exited_3() -> Value {
    json!({"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3",
        "reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}})
}

#[tokio::test]
async fn websocket_v5_closes_stdin_and_reports_the_exit_code() {
    let address = command(ALL, shout).await;
    let mut socket = client::websocket(address, "/", "v5.channel.k8s.io, v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\0hello "[..])).await.unwrap();
    socket.send(Message::binary(&b"\0world"[..])).await.unwrap();
    socket.send(Message::Ping("x".into())).await.unwrap();
    socket.send(Message::binary(&b"\xff\0"[..])).await.unwrap();
    let (channels, code) = drain(&mut socket).await;
    assert_eq!(channels[1], b"hello world");
    assert_eq!(channels[2], b"11");
    assert_eq!(status(&channels[3]), exited_3());
    assert_eq!(code, Some(CloseCode::Normal));
}

#[tokio::test]
async fn websocket_output_comes_before_the_outcome() {
    let address = command(Wanted { stdout: true, ..Wanted::default() }, flood).await;
    let mut socket = client::websocket(address, "/", "v4.channel.k8s.io").await;
    let (channels, code) = drain(&mut socket).await;
    assert_eq!(channels[1].len(), 3_000_000);
    assert_eq!(status(&channels[3]), json!({"metadata":{},"status":"Success"}));
    assert_eq!(code, Some(CloseCode::Normal));
}

#[tokio::test]
async fn websocket_base64_packs_text() {
    let address = command(Wanted { stdout: true, ..Wanted::default() }, |client: Client| async move {
        client.stdout.unwrap().write_all(b"hi").await.unwrap();
        client.done.send(Outcome::Failed("no such thing".to_owned())).unwrap();
    })
    .await;
    let mut socket = client::websocket(address, "/", "base64.channel.k8s.io").await;
    let mut texts = Vec::new();
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        texts.push(text.to_string());
    }
    assert_eq!(texts, ["1", "1aGk=", "3SW50ZXJuYWwgZXJyb3Igb2NjdXJyZWQ6IG5vIHN1Y2ggdGhpbmc="]);
}

#[tokio::test]
async fn a_terminal_has_sizes_and_no_stderr() {
    let address = command(Wanted { tty: true, ..ALL }, |client: Client| async move {
        assert!(client.stderr.is_none());
        let (width, height) = client.resize.unwrap().recv().await.unwrap();
        client.stdout.unwrap().write_all(format!("{width}x{height}").as_bytes()).await.unwrap();
        client.done.send(Outcome::Exited(0)).unwrap();
    })
    .await;
    let mut socket = client::websocket(address, "/", "v5.channel.k8s.io").await;
    socket.send(Message::binary(&b"\x04{\"Width\":132,\"Height\":43}\n"[..])).await.unwrap();
    assert_eq!(drain(&mut socket).await.0[1], b"132x43");

    let (_, mut spdy) = client::spdy(address, "/", &["v4.channel.k8s.io"]).await;
    let error = spdy.open(&[("streamtype", "error")]).await;
    spdy.open(&[("streamtype", "stdin")]).await;
    let stdout = spdy.open(&[("streamtype", "stdout")]).await;
    let resize = spdy.open(&[("streamtype", "resize")]).await;
    spdy.data(resize, false, &b"{\"Width\":1,\"Height\":2}\n"[..]).await;
    let found = spdy.read_all(&[stdout, error]).await;
    assert_eq!(found[0], b"1x2");
    assert_eq!(status(&found[1])["status"], "Success");
}

#[tokio::test]
async fn spdy_carries_all_streams_and_the_exit_code() {
    let address = command(ALL, shout).await;
    let (head, mut spdy) =
        client::spdy(address, "/", &["v9.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]).await;
    assert!(
        head.starts_with("HTTP/1.1 101") && head.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"),
        "{head}"
    );
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        ids.push(spdy.open(&[("streamtype", kind)]).await);
    }
    let input = vec![b'x'; 2_000_000];
    for piece in input.chunks(32_768) {
        spdy.data(ids[1], false, piece.to_vec()).await;
    }
    spdy.data(ids[1], true, &b""[..]).await;
    let found = spdy.read_all(&[ids[0], ids[2], ids[3]]).await;
    assert_eq!(status(&found[0]), exited_3());
    assert!(found[1] == input);
    assert_eq!(found[2], b"2000000");
}

#[tokio::test]
async fn old_spdy_clients_get_text() {
    let address = command(Wanted { stdout: true, ..Wanted::default() }, |client: Client| async move {
        client.done.send(Outcome::Exited(1)).unwrap();
    })
    .await;
    let (_, mut spdy) = client::spdy(address, "/", &[]).await;
    let error = spdy.open(&[("streamtype", "error")]).await;
    spdy.open(&[("streamtype", "stdout")]).await;
    let text = spdy.read_all(&[error]).await.remove(0);
    assert_eq!(text, b"command terminated with non-zero exit code: exit status 1");
}

#[tokio::test]
async fn a_command_learns_that_its_client_left() {
    let (told, mut left) = mpsc::unbounded_channel();
    let address = command(ALL, move |mut client: Client| {
        let told = told.clone();
        async move {
            client.done.closed().await;
            let mut rest = Vec::new();
            let _ = client.stdin.unwrap().read_to_end(&mut rest).await;
            let mut stdout = client.stdout.unwrap();
            while stdout.write_all(&[0; 1024]).await.is_ok() {}
            told.send(()).unwrap();
        }
    })
    .await;
    drop(client::websocket(address, "/", "v5.channel.k8s.io").await);
    left.recv().await.unwrap();
    let (_, mut spdy) = client::spdy(address, "/", &["v4.channel.k8s.io"]).await;
    for kind in ["error", "stdin", "stdout", "stderr"] {
        spdy.open(&[("streamtype", kind)]).await;
    }
    while !matches!(spdy.next().await, Some(Frame::SynReply { id: 7, .. })) {}
    drop(spdy);
    left.recv().await.unwrap();
}

#[tokio::test]
async fn a_command_that_says_nothing_is_a_failure() {
    let address =
        command(Wanted { stdout: true, ..Wanted::default() }, |client: Client| async move { drop(client) }).await;
    let mut socket = client::websocket(address, "/", "v4.channel.k8s.io").await;
    let (channels, _) = drain(&mut socket).await;
    assert_eq!(status(&channels[3])["reason"], "InternalError");
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let address = command(ALL, shout).await;
    let (head, _) = client::spdy(address, "/", &["v9.channel.k8s.io"]).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let plain = axum::extract::Request::new(axum::body::Body::empty());
    let error = exec(plain, ALL).err().unwrap();
    assert_eq!((error.status().as_u16(), error.to_string().as_str()), (400, "Upgrade request required"));
    let plain = axum::extract::Request::new(axum::body::Body::empty());
    assert!(matches!(exec(plain, Wanted::default()), Err(crate::StreamError::NothingWanted)));
}
