//! `holdfast port-forward`: each local connection gets a stream of its own to the pod.
use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::{TcpListener, TcpStream};

use super::{Error, Session};
use crate::{
    Outcome,
    cli::PortForwardArgs,
    errors::{Doing, said, say, story},
};

pub async fn run(args: PortForwardArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    pods.get(&args.pod).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for text in &args.ports {
        let (local, remote) = ports(text)?;
        let listener =
            TcpListener::bind((args.address, local)).await.doing(|| format!("listen on {}:{local}", args.address))?;
        say(format_args!("Forwarding from {} -> {remote}", listener.local_addr()?))?;
        let (pods, pod) = (pods.clone(), args.pod.clone());
        tasks.spawn(async move {
            loop {
                let Ok((connection, _)) = listener.accept().await else { return };
                let (pods, pod) = (pods.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(error) = forward(pods, &pod, remote, connection).await {
                        eprintln!("holdfast: forward to port {remote} of pod {pod}: {}", story(error.as_ref()));
                    }
                });
            }
        });
    }
    tokio::select! {
        _ = tasks.join_all() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn forward(pods: Api<Pod>, pod: &str, port: u16, mut connection: TcpStream) -> Result<(), Error> {
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let Some(mut stream) = forwarder.take_stream(port) else { return said("the server opened no stream") };
    tokio::io::copy_bidirectional(&mut connection, &mut stream).await?;
    drop(stream);
    forwarder.join().await?;
    Ok(())
}

/// `LOCAL:POD`, `PORT` or `:POD`.
fn ports(text: &str) -> Result<(u16, u16), Error> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let local = if local.is_empty() { "0" } else { local };
    match (local.parse(), remote.parse()) {
        (Ok(local), Ok(remote)) if remote > 0 => Ok((local, remote)),
        _ => said(format!("{text:?} is not a pair of ports; write LOCAL:POD, for example 8888:80")),
    }
}

#[test]
fn port_forms() {
    assert_eq!(ports("8888:80").unwrap(), (8888, 80));
    assert_eq!(ports("80").unwrap(), (80, 80));
    assert_eq!(ports(":80").unwrap(), (0, 80));
    for bad in ["", "x:80", "80:", "70000:80"] {
        assert!(ports(bad).is_err(), "{bad}");
    }
}
