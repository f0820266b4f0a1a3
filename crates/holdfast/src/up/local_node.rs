//! The node of this process: images, network, runtime, volumes and agent put together.
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, response::Response};
use base::{Layout, SystemClock};
use host::Registry;
use images::{GcPolicy, GcReport, Images};
use k8s_openapi::api::core::v1::Node as NodeObject;
use network::{Network, Subnet};
use node::{Config, CsiDrivers, Node};
use runtime::{Embedded, Runtime};
use server::nodes::NodeConnector;
use sys::RealSys;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use volumes::PodVolumes;

use crate::{
    cli::{RwoScope, UpArgs},
    client::Error,
    errors::{Doing, said},
    registries,
    up::stand_ins,
};

/// Between two looks for images and layers that nobody needs; one that finds nothing reads a directory.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// At every so manyth look a full disk is relieved too: the kubelet's five minutes.
const RELIEVE_EVERY: u32 = 5;

/// The node and what it stands on.
#[derive(Clone)]
pub struct LocalNode {
    name: String,
    client: kube::Client,
    node: Arc<Node>,
    runtime: Embedded,
    network: Network,
    images: Images,
    volumes: Arc<PodVolumes>,
}

/// What a node has to do with.
pub struct Reach {
    pub network: Network,
    /// Where pods reach the API server.
    pub api: SocketAddr,
    pub client: kube::Client,
    /// Where the CSI drivers of this machine are put down.
    pub drivers: Registry,
}

/// Opens the pod network; its gateway address is needed before the API server's certificate is made.
pub fn open_network(layout: &Layout, args: &UpArgs) -> Result<Network, Error> {
    let pod_cidr = args.pod_cidr.as_deref().map(subnet).transpose()?;
    Ok(Network::open(layout.network(), network::Options { pod_cidr, bridge: None })?)
}

fn subnet(text: &str) -> Result<Subnet, Error> {
    let parts = text.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
    match parts {
        Some((address, prefix)) => Ok(Subnet::new(address, prefix)?),
        None => said(format!("--pod-cidr {text:?} is no IPv4 network; write for example 10.88.0.0/24")),
    }
}

impl LocalNode {
    /// Puts the node together; adopts the containers that run.
    pub async fn open(layout: &Layout, args: &UpArgs, name: &str, reach: Reach) -> Result<Self, Error> {
        let Reach { network, api, client, drivers } = reach;
        let images = Images::open(layout.images(), registries::config(&args.registries)?)?;
        // The bridge's name is unique on this machine: what is named after it never meets another instance's.
        let cgroup_root = format!("holdfast-{}", network.bridge());
        let runtime = Embedded::open(runtime::Options {
            dir: layout.runtime(),
            images: Arc::new(images.clone()),
            network: Arc::new(network.clone()),
            cgroup_root,
            self_exe: std::env::current_exe().doing(|| "find this program's file".into())?,
        })
        .await?;
        // Nobody makes a pod yet, so what no sandbox explains is left over from a crash.
        let pods: HashSet<String> = runtime.list().await?.into_iter().map(|s| s.spec.uid.0).collect();
        network.sweep(&pods).await?;
        let calls = CsiDrivers::new(drivers.clone(), client.clone());
        let address = host_address().unwrap_or_else(|| network.gateway());
        let flocker = flocker::Client::new(args.volumes.flocker.settings());
        let volumes = PodVolumes::new(layout.pods(), Arc::new(RealSys)).with_drivers(Arc::new(calls));
        let volumes = volumes.with_flocker(Arc::new(flocker)).with_settings(args.volumes.settings(address));
        let volumes = Arc::new(volumes);
        let mut config = Config::new(name.to_owned(), layout.clone(), vec![address]);
        config.drivers = drivers;
        config.api_address = Some((api.ip().to_string(), api.port()));
        config.rwo_scope = match args.rwo_scope {
            RwoScope::Node => node::RwoScope::Node,
            RwoScope::Pod => node::RwoScope::Pod,
        };
        config.labels.extend(stand_ins::labels(&args.stand_in));
        config.runtime_version = concat!("holdfast://", env!("CARGO_PKG_VERSION")).into();
        let shared: Arc<dyn Runtime> = Arc::new(runtime.clone());
        let node = Node::new(config, client.clone(), shared, volumes.clone(), Arc::new(SystemClock));
        Ok(Self { name: name.to_owned(), client, node, runtime, network, images, volumes })
    }

    /// Runs the agent until `stop`; containers keep running after that.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        tokio::select! {
            ended = self.node.run(stop) => Ok(ended?),
            never = self.collect_images() => match never {},
        }
    }

    /// Removes images and layers that nobody needs, for ever.
    async fn collect_images(&self) -> std::convert::Infallible {
        if self.ready().await.is_err() {
            std::future::pending::<()>().await;
        }
        for turn in (1..=RELIEVE_EVERY).cycle() {
            // Not at the start, when pods that were there before may be about to use their images again.
            let relieve = turn == RELIEVE_EVERY;
            let policy = if relieve { GcPolicy::default() } else { GcPolicy::unneeded_only() };
            match self.collect_images_once(policy).await {
                Ok(done) if done.removed_images.is_empty() && done.removed_layers == 0 => {}
                Ok(done) => tracing::info!(
                    images = done.removed_images.join(" "),
                    layers = done.removed_layers,
                    bytes = done.freed_bytes,
                    "removed images and layers that nobody needs"
                ),
                Err(error) => {
                    tracing::warn!(
                        error = base::chain(error.as_ref()),
                        "could not remove unneeded images; it is tried again"
                    )
                }
            }
            tokio::time::sleep(COLLECT_EVERY).await;
        }
        std::future::pending().await
    }

    async fn collect_images_once(&self, policy: GcPolicy) -> Result<GcReport, Error> {
        let mut in_use = self.runtime.images_in_use().await?;
        let (images, volumes) = (self.images.clone(), self.volumes.clone());
        let collect = move || -> Result<GcReport, Error> {
            in_use.extend(volumes.images()?);
            Ok(images.gc(&in_use, &policy)?)
        };
        tokio::task::spawn_blocking(collect).await?
    }

    /// Waits until the API says that the node is Ready.
    pub async fn ready(&self) -> Result<(), Error> {
        let nodes: kube::Api<NodeObject> = kube::Api::all(self.client.clone());
        let is_ready = |node: Option<&NodeObject>| {
            let conditions = node.and_then(|n| n.status.as_ref()?.conditions.as_ref()).into_iter().flatten();
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        kube::runtime::wait::await_condition(nodes, &self.name, is_ready).await?;
        Ok(())
    }

    /// After the agent has ended: removes bridge and cgroup if no pod is left that needs them.
    pub async fn close(&self) {
        match self.runtime.list().await {
            Ok(pods) if pods.is_empty() => {
                if let Err(error) = self.runtime.remove_all().await {
                    tracing::warn!(error = base::chain(&error), "could not remove the instance's cgroup");
                }
                if let Err(error) = self.network.remove_all().await {
                    tracing::warn!(error = base::chain(&error), "could not remove the pod network");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = base::chain(&error), "could not tell whether pods are left"),
        }
    }

    /// The API server's way to this node's endpoints.
    pub fn connector(&self) -> Arc<dyn NodeConnector> {
        Arc::new(Connector { name: self.name.clone(), node: self.node.clone() })
    }
}

struct Connector {
    name: String,
    node: Arc<Node>,
}

#[async_trait::async_trait]
impl NodeConnector for Connector {
    async fn call(&self, node: &str, request: http::Request<Body>) -> Response {
        if node != self.name {
            let text = format!("node {node} is not in this process; this process runs node {}", self.name);
            return Response::builder()
                .status(http::StatusCode::BAD_GATEWAY)
                .body(text.into())
                .expect("a plain answer is valid");
        }
        match self.node.service().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The address by which this machine reaches others. Connecting a datagram socket asks the routing table; nothing is sent.
pub fn host_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}
