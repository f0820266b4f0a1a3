//! The HTTPS listener: TLS, who the client is, HTTP/1.1 and HTTP/2 with upgrades.
use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{ApiServer, der, handle, identity::Identity, negotiate, status::ApiError, token};

const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
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
