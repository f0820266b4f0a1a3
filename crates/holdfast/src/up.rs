//! `holdfast up`: API server, controllers and node in one process. Wiring only.
mod drivers;
pub mod kubelet_dir;
mod local_node;
pub mod preflight;
pub mod stand_ins;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use engine::{Engine, Settings};
use network::Network;
use server::{ApiServer, Identity};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome,
    cli::UpArgs,
    client::Error,
    errors::{Doing, misused},
};
use drivers::Drivers;
use local_node::{LocalNode, Reach};
use preflight::DataDir;

pub async fn run(args: UpArgs) -> Outcome {
    let started = Instant::now();
    let stop = stop_signal()?;
    if args.no_node && !args.stand_in.is_empty() {
        return misused("--stand-in needs a node on this machine; leave out --no-node");
    }
    if !args.no_node {
        preflight::privileges()?;
    }
    let node_name = preflight::node_name(args.node_name.as_deref())?;
    let mut data = DataDir::take(&args.data.data_dir)?;
    let _held = if args.no_node {
        None
    } else {
        let (layout, held) = kubelet_dir::take(data.layout.clone(), args.kubelet_dir.as_deref())?;
        data.layout = layout;
        Some(held)
    };
    let listener = listen(args.listen).await?;
    let network = if args.no_node { None } else { Some(local_node::open_network(&data.layout, &args)?) };
    let prepared = Prepared { data: &data, node_name: &node_name, listener, network: network.clone(), started };
    let outcome = run_in(prepared, &args, &stop).await;
    if outcome.is_err()
        && let Some(network) = network
        && let Err(error) = network.remove_unused().await
    {
        tracing::warn!(error = base::chain(&error), "could not remove the pod network");
    }
    outcome
}

/// What was taken before anything was started.
struct Prepared<'a> {
    data: &'a DataDir,
    node_name: &'a str,
    listener: TcpListener,
    /// `None` without a node.
    network: Option<Network>,
    started: Instant,
}

/// Runs until `stop` in a data directory that is ours alone.
async fn run_in(prepared: Prepared<'_>, args: &UpArgs, stop: &CancellationToken) -> Outcome {
    let Prepared { data, node_name, listener, network, started } = prepared;
    let layout = &data.layout;
    let address = listener.local_addr().doing(|| "read the listener's address".into())?;
    let mut names = vec![args.listen.ip().to_string()];
    if args.listen.ip().is_unspecified() {
        names.extend(local_node::host_address().map(|ip| ip.to_string()));
    }
    names.extend(network.as_ref().map(|n| n.gateway().to_string()));
    let config = server::Config { layout: layout.clone(), listen_names: names, store: store::Options::default() };
    let api = ApiServer::open(config)?;
    api.bootstrap().await?;
    let kubeconfig = args.kubeconfig.clone().unwrap_or_else(|| layout.admin_kubeconfig());
    write_private(&kubeconfig, &api.kubeconfig(&url(address)))?;

    let mut parts = JoinSet::new();
    serve(&mut parts, &api, listener, stop);
    let drivers = match &network {
        None => None,
        Some(_) => Some(Drivers::open(layout, node_name, &args.stand_in)?),
    };
    let mut settings = settings(&api);
    if let Some(drivers) = &drivers {
        drivers.serve(&mut parts, args.deleted.kept(), stop).await?;
        let admin = client(&api, "system:admin");
        drivers::announce(&admin).await?;
        stand_ins::announce(&admin, &args.stand_in).await?;
        settings.drivers = drivers.registry.clone();
    }
    let engine = Arc::new(Engine::new(client(&api, "system:kube-controller-manager"), settings));
    parts.spawn({
        let (engine, stop) = (engine.clone(), stop.clone());
        async move {
            engine.run(stop.cancelled_owned()).await;
            Ok(())
        }
    });
    let node = match network {
        None => None,
        Some(network) => {
            // Pods cannot reach the host's loopback; they find the API at their gateway.
            let inside = listen(SocketAddr::new(network.gateway(), 0)).await?;
            let pods_reach = inside.local_addr().doing(|| "read the listener's address".into())?;
            serve(&mut parts, &api, inside, stop);
            let client = client(&api, &format!("system:node:{node_name}"));
            let drivers = drivers.map(|d| d.registry).unwrap_or_default();
            let node =
                LocalNode::open(layout, args, node_name, Reach { network, api: pods_reach, client, drivers }).await?;
            api.set_connector(node.connector());
            parts.spawn(node.clone().run(stop.clone()));
            Some(node)
        }
    };
    let ready = async {
        engine.ready().await;
        match &node {
            Some(node) => node.ready().await,
            None => Ok(()),
        }
    };
    let failed = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        ready = ready => ready.err(),
        Some(ended) = parts.join_next() => Some(why(ended)),
    };
    let failed = match failed {
        Some(error) => Some(error),
        None if stop.is_cancelled() => None,
        None => {
            let after = started.elapsed().as_secs_f64() * 1000.0;
            println!(
                "holdfast is ready at {} after {after:.0} ms; export KUBECONFIG={}",
                url(address),
                kubeconfig.display()
            );
            tokio::select! {
                // First: the parts end because of it.
                biased;
                () = stop.cancelled() => None,
                Some(ended) = parts.join_next() => Some(why(ended)),
            }
        }
    };
    stop.cancel();
    parts.join_all().await;
    if let Some(node) = node {
        node.close().await;
    }
    api.close().await;
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

type Ended = Result<Result<(), Error>, tokio::task::JoinError>;

/// Why a part ended that should have gone on.
fn why(ended: Ended) -> Error {
    match ended {
        Ok(Ok(())) => "a part of the program ended by itself; this is a bug".into(),
        Ok(Err(error)) => error,
        Err(panic) => panic.into(),
    }
}

fn serve(parts: &mut JoinSet<Result<(), Error>>, api: &ApiServer, listener: TcpListener, stop: &CancellationToken) {
    let (api, stop) = (api.clone(), stop.clone());
    parts.spawn(async move { Ok(api.serve(listener, stop.cancelled_owned()).await?) });
}

/// A client plugged straight into the API server's router.
fn client(api: &ApiServer, user: &str) -> kube::Client {
    kube::Client::new(api.service(Identity::component(user)), "default")
}

fn settings(api: &ApiServer) -> Settings {
    Settings { root_ca: Some(api.ca_certificate().into()), ..Settings::default() }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    Ok(TcpListener::bind(address)
        .await
        .doing(|| format!("listen on {address}; choose another address with --listen"))?)
}

/// The API's address as clients on this machine reach it.
fn url(address: SocketAddr) -> String {
    let reachable = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(reachable, address.port()))
}

/// Writes a file that only its owner may read, replacing an older one at once; leaves one that says the same alone.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let what = || format!("write the kubeconfig {}; choose another place with --kubeconfig", path.display());
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let part = path.with_extension("part");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).doing(what)?;
    file.write_all(text.as_bytes()).doing(what)?;
    Ok(std::fs::rename(&part, path).doing(what)?)
}

/// A token that SIGTERM or Ctrl-C cancels.
pub fn stop_signal() -> Result<CancellationToken, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).doing(|| "listen for SIGTERM".into())?;
    let mut int = signal(SignalKind::interrupt()).doing(|| "listen for Ctrl-C".into())?;
    let seen = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        seen.cancel();
    });
    Ok(stop)
}
