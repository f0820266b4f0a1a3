//! The `grpc.health.v1.Health/Check` call, by hand: one message out, one back.
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::request;

const SERVING: u64 = 1;

/// Ok if the service says that it is serving.
///
/// # Errors
/// Upstream's sentence.
pub async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let address = request::host_port(host, port);
    let failed = |why: String| format!("error: failed to connect service at {address:?}: {why}");
    let stream = TcpStream::connect(&address).await.map_err(|e| failed(request::plain(&e)))?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| failed(base::chain(&e)))?;
    let driver = tokio::spawn(connection);
    let broken = |why: String| format!("error: health rpc probe failed: {why}");
    let result = async {
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(question(service)))
            .map_err(|e| broken(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| broken(base::chain(&e)))?;
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.map_err(|e| broken(base::chain(&e)))?;
        let status = body.trailers().and_then(|t| t.get("grpc-status")).or_else(|| headers.get("grpc-status"));
        match status.and_then(|s| s.to_str().ok()) {
            Some("0") | None => {}
            Some("12") => {
                let what = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)";
                return Err(what.to_owned());
            }
            Some(code) => return Err(broken(format!("rpc error: code = {code}"))),
        }
        match answer(&body.to_bytes()) {
            Some(SERVING) => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", name(other.unwrap_or(0)))),
        }
    }
    .await;
    driver.abort();
    result
}

fn name(status: u64) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

/// `HealthCheckRequest { service }` in a gRPC frame.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put(message);
    frame.freeze()
}

/// The status of a `HealthCheckResponse` in a gRPC frame; absent means 0.
fn answer(frame: &[u8]) -> Option<u64> {
    let message = frame.get(5..)?;
    match message {
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[test]
fn frames() {
    assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
    assert_eq!(question("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    assert_eq!(question(&"x".repeat(200)).len(), 5 + 3 + 200);
    assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
    assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0));
    assert_eq!(answer(&[0]), None);
}
