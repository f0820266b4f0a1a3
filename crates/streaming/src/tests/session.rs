use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::client::Spdy;
use crate::spdy::{Frame, Session};

#[tokio::test]
async fn pings_are_answered_and_wrong_streams_reset() {
    let (ours, theirs) = duplex(1024);
    let (_session, mut incoming) = Session::spawn(ours);
    let mut client = Spdy::new(theirs);
    client.send(&Frame::Ping(5)).await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Ping(5)));
    client.send(&Frame::SynStream { id: 2, fin: false, headers: Vec::new() }).await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Reset { id: 2, status: 1 }));
    let id = client.open(&[]).await;
    assert_eq!(client.next().await, Some(Frame::SynReply { id, fin: false, headers: Vec::new() }));
    assert_eq!(incoming.recv().await.unwrap().stream.id(), id);
    client.send(&Frame::SynStream { id, fin: false, headers: Vec::new() }).await.unwrap();
    // Dropping the stream ended it; the second one of the same number is refused.
    let mut answers = [client.next().await.unwrap(), client.next().await.unwrap()];
    answers.sort_by_key(|frame| matches!(frame, Frame::Reset { .. }));
    assert!(matches!(answers, [Frame::Data { fin: true, .. }, Frame::Reset { status: 1, .. }]), "{answers:?}");
}

#[tokio::test]
async fn a_client_that_sends_too_far_ahead_waits() {
    let (ours, theirs) = duplex(1024);
    let (_session, mut incoming) = Session::spawn(ours);
    let mut client = Spdy::new(theirs);
    let id = client.open(&[]).await;
    let mut stream = incoming.recv().await.unwrap().stream;
    assert!(matches!(client.next().await, Some(Frame::SynReply { .. })));
    // Far more than may be kept: writing must come to a halt while nobody reads, and go on when somebody does.
    const PIECES: usize = 200;
    let writer = tokio::spawn(async move {
        for piece in 0..PIECES {
            client.data(id, piece + 1 == PIECES, vec![1; 16_384]).await;
        }
        client
    });
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
    assert!(!writer.is_finished());
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), PIECES * 16_384);
    let mut client = writer.await.unwrap();
    let mut granted = 0;
    while granted < 16_384 * (PIECES - 4) {
        match client.next().await.unwrap() {
            Frame::WindowUpdate { id: found, delta } if found == id => granted += delta as usize,
            Frame::WindowUpdate { id: 0, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn windows_are_kept_towards_a_client_that_has_them() {
    let (ours, theirs) = duplex(1 << 20);
    let (_session, mut incoming) = Session::spawn(ours);
    let mut client = Spdy::new(theirs);
    client.send(&Frame::Settings(vec![(7, 1000)])).await.unwrap();
    let id = client.open(&[]).await;
    assert!(matches!(client.next().await, Some(Frame::SynReply { .. })));
    let mut stream = incoming.recv().await.unwrap().stream;
    tokio::spawn(async move {
        stream.write_all(&[5; 5000]).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut got = 0;
    while got < 1000 {
        let Some(Frame::Data { bytes, fin: false, .. }) = client.next().await else { panic!("no data") };
        got += bytes.len();
    }
    assert_eq!(got, 1000);
    client.send(&Frame::Ping(1)).await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Ping(1)));
    client.send(&Frame::WindowUpdate { id, delta: 10_000 }).await.unwrap();
    assert_eq!(client.read_all(&[id]).await[0].len(), 4000);
}

#[tokio::test]
async fn a_reset_breaks_one_stream_only() {
    let (ours, theirs) = duplex(1 << 20);
    let (session, mut incoming) = Session::spawn(ours);
    let mut client = Spdy::new(theirs);
    let (first, second) = (client.open(&[]).await, client.open(&[]).await);
    let mut streams = [incoming.recv().await.unwrap().stream, incoming.recv().await.unwrap().stream];
    client.send(&Frame::Reset { id: first, status: 5 }).await.unwrap();
    assert!(streams[0].read_u8().await.is_err());
    assert!(streams[0].write_all(b"x").await.is_err());
    client.data(second, true, &b"y"[..]).await;
    assert_eq!(streams[1].read_u8().await.unwrap(), b'y');
    session.finish(second, b"bye");
    session.close();
    assert_eq!(client.read_all(&[second]).await[0], b"bye");
    assert!(matches!(client.next().await, Some(Frame::GoAway { .. })));
    drop(client);
    session.closed().await;
    assert!(streams[1].write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_reset_after_the_end_is_an_end() {
    let (ours, theirs) = duplex(1 << 20);
    let (_session, mut incoming) = Session::spawn(ours);
    let mut client = Spdy::new(theirs);
    let id = client.open(&[]).await;
    let mut stream = incoming.recv().await.unwrap().stream;
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(client.read_all(&[id]).await[0], b"all");
    client.send(&Frame::Reset { id, status: 5 }).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let (ours, mut theirs) = duplex(1024);
    let (session, mut incoming) = Session::spawn(ours);
    theirs.write_all(b"\xffnonsense that is no frame").await.unwrap();
    session.closed().await;
    assert!(incoming.recv().await.is_none());
}
