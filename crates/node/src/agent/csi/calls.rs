//! The drivers of this node for the volumes' plugin, which blocks while they work.
use std::{collections::BTreeMap, time::Duration};

use base::chain;
use csi::{
    Facts, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Status,
};
use host::{Plugin, Registry};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{Api, api::PostParams};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use volumes::{DriverError, Drivers, PodOf, SecretRef, TokenWish};

/// More than the connection's own limit: for a driver that does not even take the call.
const TIME_FOR_A_CALL: Duration = Duration::from_secs(125);
/// The same for the API.
const TIME_FOR_THE_API: Duration = Duration::from_secs(30);

/// The drivers that a registry knows, as volumes call them: from threads that may block.
pub struct CsiDrivers {
    registry: Registry,
    client: kube::Client,
    runtime: Handle,
}

impl CsiDrivers {
    /// Calls go out on the runtime that this is made in; `client` reads Secrets and asks for tokens.
    pub fn new(registry: Registry, client: kube::Client) -> Self {
        Self { registry, client, runtime: Handle::current() }
    }

    fn call<T>(&self, driver: &str, act: impl AsyncFnOnce(&Plugin) -> Result<T, Status>) -> Result<T, DriverError> {
        let plugin = self.registry.plugin(driver).ok_or(DriverError::Absent)?;
        let answered = self.runtime.block_on(async { tokio::time::timeout(TIME_FOR_A_CALL, act(&plugin)).await });
        let late = |_| Status::deadline_exceeded("context deadline exceeded");
        answered.map_err(late).and_then(|said| said).map_err(DriverError::Failed)
    }

    fn ask<T>(&self, act: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
        let answered = self.runtime.block_on(async { tokio::time::timeout(TIME_FOR_THE_API, act).await });
        match answered {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(kube::Error::Api(status))) => Err(status.message),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err("the API server did not answer in time".into()),
        }
    }

    fn read_secret(&self, secret: &SecretRef) -> Result<Secret, String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        self.ask(secrets.get(&secret.name))
    }

    fn token(&self, pod: &PodOf, wish: &TokenWish) -> Result<Value, String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(Some(wish.audience.clone()).filter(|a| !a.is_empty()).into_iter().collect()),
                expiration_seconds: wish.expiration_seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = PostParams::default();
        let asked = accounts.create_subresource("token", &pod.service_account, &params, &request);
        let answer: TokenRequest = self.ask(asked)?;
        let status = answer.status.unwrap_or_default();
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("the API answered without a token".into());
        };
        Ok(json!({ "token": token, "expirationTimestamp": expires }))
    }
}

impl Drivers for CsiDrivers {
    fn facts(&self, driver: &str) -> Option<Facts> {
        self.registry.plugin(driver).map(|plugin| plugin.facts.clone())
    }

    fn stage(&self, driver: &str, request: NodeStageVolumeRequest) -> Result<(), DriverError> {
        self.call(driver, async |plugin| plugin.node.node_stage_volume(request).await).map(drop)
    }

    fn unstage(&self, driver: &str, request: NodeUnstageVolumeRequest) -> Result<(), DriverError> {
        self.call(driver, async |plugin| plugin.node.node_unstage_volume(request).await).map(drop)
    }

    fn publish(&self, driver: &str, request: NodePublishVolumeRequest) -> Result<(), DriverError> {
        self.call(driver, async |plugin| plugin.node.node_publish_volume(request).await).map(drop)
    }

    fn unpublish(&self, driver: &str, request: NodeUnpublishVolumeRequest) -> Result<(), DriverError> {
        self.call(driver, async |plugin| plugin.node.node_unpublish_volume(request).await).map(drop)
    }

    fn expand(&self, driver: &str, request: NodeExpandVolumeRequest) -> Result<(), DriverError> {
        self.call(driver, async |plugin| plugin.node.node_expand_volume(request).await).map(drop)
    }

    fn stats(
        &self,
        driver: &str,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, DriverError> {
        self.call(driver, async |plugin| plugin.node.node_get_volume_stats(request).await)
    }

    fn secret(&self, secret: &SecretRef) -> Result<BTreeMap<String, String>, String> {
        let found = self.read_secret(secret)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect())
    }

    fn secret_of_type(&self, secret: &SecretRef, kind: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let found = self.read_secret(secret)?;
        if found.type_.as_deref() != Some(kind) {
            return Err(format!("cannot get secret of type {kind}: its type is {:?}", found.type_.unwrap_or_default()));
        }
        Ok(found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect())
    }

    fn tokens(&self, pod: &PodOf, wishes: &[TokenWish]) -> Result<String, String> {
        let mut all = Map::new();
        for wish in wishes {
            all.insert(wish.audience.clone(), self.token(pod, wish)?);
        }
        Ok(Value::Object(all).to_string())
    }
}
