//! The HTTPS listener: TLS, who the client is, HTTP/1.1 and HTTP/2 with upgrades.
use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{ApiServer, der, handle, identity::Identity, negotiate, status::ApiError, token};

const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to say anything at all; from then on HTTP has limits of its own.
const FIRST_BYTE_TIME: Duration = Duration::from_secs(30);
/// How long requests in flight may take to finish at shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The listener could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("serve the API over TLS")]
pub struct ServeError(#[from] crate::pki::PkiError);

pub(crate) async fn serve(
    server: ApiServer,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(server.inner().pki.server_config()?));
    let connections = TaskTracker::new();
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(hyper_util::rt::TokioTimer::new());
    http.http2().timer(hyper_util::rt::TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    let http = Arc::new(http);
    tokio::pin!(shutdown);
    loop {
        let socket = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file descriptors, mostly: other connections must end first.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        connections.spawn(connection(server.clone(), acceptor.clone(), socket, http.clone()));
    }
    drop(listener);
    server.inner().shutdown.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN_TIME, connections.wait()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
    Ok(())
}

async fn connection(
    server: ApiServer,
    acceptor: TlsAcceptor,
    socket: TcpStream,
    http: Arc<auto::Builder<TokioExecutor>>,
) {
    // Answers and watch events are small and must not wait for one another.
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.and_then(|c| der::subject(c)).map(|(user, mut groups)| {
        groups.push("system:authenticated".into());
        Arc::new(Identity { user, groups, ..Identity::default() })
    });
    let shutdown = server.inner().shutdown.clone();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let (server, identity) = (server.clone(), identity.clone());
        async move { Ok::<_, Infallible>(answer(&server, identity.as_deref(), request.map(Body::new)).await) }
    });
    let stream = FirstByte { stream, patience: Some(Box::pin(tokio::time::sleep(FIRST_BYTE_TIME))) };
    let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection ended");
    }
}

/// A connection that fails if nothing is heard on it for [`FIRST_BYTE_TIME`] after its beginning.
struct FirstByte<S> {
    stream: S,
    /// Gone once something was heard.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstByte<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            this.patience = None;
            return Poll::Ready(result);
        }
        match &mut this.patience {
            Some(patience) => patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstByte<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Answers a request from the network: a certificate counts first, then a bearer token.
async fn answer(server: &ApiServer, certificate: Option<&Identity>, request: Request<Body>) -> Response {
    if certificate.is_some() {
        return server.answer(certificate, request).await;
    }
    let Some(token) = handle::bearer(request.headers()) else { return server.answer(None, request).await };
    match server.inner().authenticate(token, &[token::ISSUER.to_owned()]) {
        Some((identity, _)) => server.answer(Some(&identity), request).await,
        None => negotiate::error(&ApiError::unauthorized(), negotiate::Form::JSON),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let connection = || {
            let (near, far) = tokio::io::duplex(8);
            (FirstByte { stream: near, patience: Some(Box::pin(tokio::time::sleep(FIRST_BYTE_TIME))) }, far)
        };
        let (mut silent, _far) = connection();
        assert_eq!(silent.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (mut slow, mut far) = connection();
        far.write_u8(1).await.unwrap();
        assert_eq!(slow.read_u8().await.unwrap(), 1);
        tokio::time::sleep(FIRST_BYTE_TIME * 2).await;
        far.write_u8(2).await.unwrap();
        assert_eq!(slow.read_u8().await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_ends_its_request() {
        let never = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, io::Error>>());
        assert_eq!(crate::body::read(never).await.unwrap_err().code, 504);
    }
}
