//! What the objects are that a pod's volumes name, as far as the watches know.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use volumes::{Inputs, Need, attach_required, attachment_name, endpoints_of};

use super::{Keeper, identity};
use crate::agent::objects::Known;

impl Keeper {
    /// Fills in what the watches know; gives back what they do not know yet.
    pub(super) fn look_up(&mut self, pod: &Pod, all: &BTreeSet<&Need>, inputs: &mut Inputs) -> BTreeSet<Need> {
        let (_, namespace, _) = identity(pod);
        let shared = self.shared.clone();
        let objects = &shared.objects;
        let mut unknown = BTreeSet::new();
        for need in all {
            let answered = match need {
                Need::ConfigMap(name) => {
                    let make = || objects.config_map(namespace, name, &self.changed);
                    let w = self.held.config_maps.entry(name.clone()).or_insert_with(make);
                    put(&mut inputs.config_maps, name, w.get())
                }
                Need::Secret(name) => {
                    let make = || objects.secret(namespace, name, &self.changed);
                    let w = self.held.secrets.entry(name.clone()).or_insert_with(make);
                    put(&mut inputs.secrets, name, w.get())
                }
                Need::Claim(name) => {
                    let make = || objects.claim(namespace, name, &self.changed);
                    let w = self.held.claims.entry(name.clone()).or_insert_with(make);
                    let claim = w.get();
                    let bound = match &claim {
                        Known::There(c) => {
                            c.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty())
                        }
                        _ => None,
                    };
                    let claim_known = put(&mut inputs.claims, name, claim);
                    claim_known && bound.is_none_or(|v| self.look_up_volume(pod, &v, inputs))
                }
                Need::Endpoints { namespace, name } => {
                    self.look_up_endpoints((namespace.clone(), name.clone()), inputs)
                }
                Need::Driver(name) => self.look_up_driver(name, inputs),
                Need::Disk { driver, handle } => self.look_up_disk(driver, handle, inputs),
                Need::TrustBundles => {
                    let make = || objects.trust_bundles(&self.changed);
                    match self.held.trust_bundles.get_or_insert_with(make).get() {
                        Known::There(all) => {
                            inputs.trust_bundles = Some(all);
                            true
                        }
                        Known::Unknown | Known::Absent => false,
                    }
                }
                Need::Token { .. } => true,
            };
            if !answered {
                unknown.insert((*need).clone());
            }
        }
        unknown
    }

    /// A persistent volume and, of a driver's, what mounting it needs to know.
    fn look_up_volume(&mut self, pod: &Pod, name: &str, inputs: &mut Inputs) -> bool {
        let shared = self.shared.clone();
        let make = || shared.objects.volume(name, &self.changed);
        let volume = self.held.volumes.entry(name.to_owned()).or_insert_with(make).get();
        if !put(&mut inputs.volumes, name, volume) {
            return false;
        }
        let volume = inputs.volumes.get(name).and_then(Option::as_ref);
        if let Some(endpoints) = volume.and_then(|volume| endpoints_of(pod, volume)) {
            return self.look_up_endpoints(endpoints, inputs);
        }
        let Some(s) = volume.and_then(in_tree::source_of) else { return true };
        self.look_up_disk(&s.driver, &s.volume_handle, inputs)
    }

    /// The servers of a volume.
    fn look_up_endpoints(&mut self, key: (String, String), inputs: &mut Inputs) -> bool {
        let shared = self.shared.clone();
        let make = || shared.objects.endpoints(&key.0, &key.1, &self.changed);
        let found = match self.held.endpoints.entry(key.clone()).or_insert_with(make).get() {
            Known::Unknown => return false,
            Known::Absent => None,
            Known::There(object) => Some((*object).clone()),
        };
        inputs.endpoints.insert(key, found);
        true
    }

    /// What mounting a volume of a driver needs to know.
    fn look_up_disk(&mut self, driver: &str, handle: &str, inputs: &mut Inputs) -> bool {
        if !self.look_up_driver(driver, inputs) {
            return false;
        }
        if !attach_required(inputs.drivers.get(driver).and_then(Option::as_ref)) {
            return true;
        }
        let shared = self.shared.clone();
        let name = attachment_name(handle, driver, &shared.config.node_name);
        let make = || shared.objects.attachment(&name, &self.changed);
        let attachment = self.held.attachments.entry(name.clone()).or_insert_with(make).get();
        put(&mut inputs.attachments, &name, attachment)
    }

    fn look_up_driver(&mut self, name: &str, inputs: &mut Inputs) -> bool {
        let make = || self.shared.objects.driver(name, &self.changed);
        let driver = self.held.drivers.entry(name.to_owned()).or_insert_with(make).get();
        put(&mut inputs.drivers, name, driver)
    }
}

/// False if the answer is not known yet.
fn put<K: Clone>(into: &mut BTreeMap<String, Option<K>>, name: &str, known: Known<K>) -> bool {
    let found = match known {
        Known::Unknown => return false,
        Known::Absent => None,
        Known::There(object) => Some((*object).clone()),
    };
    into.insert(name.to_owned(), found);
    true
}
