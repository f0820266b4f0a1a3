//! The drivers that `up` brings along: served on sockets as anybody's, and made known to the API.
use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use base::Layout;
use driver::Driver;
use host::Registry;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use pool::Pool;
use serde_json::json;
use sys::RealSys;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use super::stand_ins;
use crate::{
    client::Error,
    csi_driver::empty_trash,
    errors::{Doing, said},
};

/// The class of claims, and that of snapshots, that name none.
const CLASS: &str = "local";
const SNAPSHOTS: &str = api::snapshot::GROUP;

/// One driver of this process.
pub struct Brought {
    pub name: &'static str,
    pool: Arc<Pool>,
    routes: Box<dyn Fn() -> RoutesBuilder + Send + Sync>,
    socket: PathBuf,
}

impl Brought {
    pub fn new(
        layout: &Layout,
        name: &'static str,
        pool: Arc<Pool>,
        routes: impl Fn() -> RoutesBuilder + Send + Sync + 'static,
    ) -> Self {
        Self { name, pool, routes: Box::new(routes), socket: layout.driver_socket(name) }
    }

    async fn serve(
        &self,
        parts: &mut JoinSet<Result<(), Error>>,
        keep_deleted: Duration,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        if let Some(above) = self.socket.parent() {
            fs::create_dir_all(above).doing(|| format!("make {}", above.display()))?;
        }
        let listener = csi::Listener::bind(&self.socket)?;
        let (mut routes, ended) = ((self.routes)(), stop.clone());
        driver::admin::add_to(&mut routes, self.name, self.pool.clone(), stop.clone());
        parts.spawn(async move { Ok(listener.serve(routes, ended.cancelled_owned()).await?) });
        let (pool, ended) = (self.pool.clone(), stop.clone());
        parts.spawn(async move {
            tokio::select! {
                never = empty_trash(pool, keep_deleted) => match never {},
                () = ended.cancelled() => Ok(()),
            }
        });
        Ok(())
    }
}

/// The drivers of this process.
pub struct Drivers {
    pub registry: Registry,
    all: Vec<Brought>,
}

impl Drivers {
    /// Opens the pools of this data directory.
    pub fn open(layout: &Layout, node: &str, stand_ins: &[stand_ins::Wanted]) -> Result<Self, Error> {
        let pool = Arc::new(Pool::open(&layout.volumes(), Arc::new(RealSys))?);
        let driver = Driver::new(pool.clone(), node);
        let mut all = vec![Brought::new(layout, driver::NAME, pool, move || driver.routes())];
        all.extend(stand_ins::open(layout, node, stand_ins)?);
        Ok(Self { registry: Registry::default(), all })
    }

    /// Serves the drivers until `stop`, and lets the controllers and the node have them.
    pub async fn serve(
        &self,
        parts: &mut JoinSet<Result<(), Error>>,
        keep_deleted: Duration,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        for driver in &self.all {
            driver.serve(parts, keep_deleted, stop).await?;
            self.registry.add(&driver.socket).await?;
        }
        Ok(())
    }
}

/// Makes the objects by which people find the driver, unless they are there: what was changed is left as it is.
pub async fn announce(client: &kube::Client) -> Result<(), Error> {
    let driver = json!({
        "metadata": { "name": driver::NAME },
        "spec": {
            "attachRequired": false, "podInfoOnMount": false, "fsGroupPolicy": "File", "storageCapacity": true,
            "volumeLifecycleModes": ["Persistent"],
        },
    });
    let class = json!({
        "metadata": { "name": CLASS, "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        "provisioner": driver::NAME, "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
    });
    let driver: CSIDriver = serde_json::from_value(driver)?;
    let class: StorageClass = serde_json::from_value(class)?;
    made("CSIDriver", Api::all(client.clone()).create(&PostParams::default(), &driver).await)?;
    made("StorageClass", Api::all(client.clone()).create(&PostParams::default(), &class).await)?;
    let snapshots = json!({
        "apiVersion": format!("{SNAPSHOTS}/v1"), "kind": "VolumeSnapshotClass",
        "metadata": { "name": CLASS, "annotations": { "snapshot.storage.kubernetes.io/is-default-class": "true" } },
        "driver": driver::NAME, "deletionPolicy": api::snapshot::DELETE,
    });
    let snapshots: DynamicObject = serde_json::from_value(snapshots)?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(SNAPSHOTS, "v1", "VolumeSnapshotClass"));
    let all = Api::<DynamicObject>::all_with(client.clone(), &kind);
    made("VolumeSnapshotClass", all.create(&PostParams::default(), &snapshots).await)
}

pub(super) fn made<T>(what: &str, created: Result<T, kube::Error>) -> Result<(), Error> {
    match created {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => said(format!("could not make the {what} of the built-in driver: {}", base::chain(&error))),
    }
}
