//! The claims of a pod: bound ones bind the pod to nodes, waiting ones get their volume with the node.
use std::borrow::Cow;

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use serde_json::json;

use super::{Obstacle, attach};
use crate::{
    binder, capacity,
    claim::{
        self, NO_PROVISIONER, SELECTED_NODE, best_volume, binds_late, claim_phase, claims_of, class_of, is_bound,
        is_made_for, requested, volume_of,
    },
    decision::{Action, Key, Meta, annotation},
    provision::bytes,
    select::{in_zone, reaches},
    waiting::{kept, repeats_pod},
    world::World,
};

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);

/// A pod's claims, sorted by what is left to do.
pub(crate) struct Claims<'a> {
    bound: Vec<Claim<'a>>,
    /// With the class that makes them wait.
    waiting: Vec<(Claim<'a>, &'a StorageClass)>,
    /// Claims for one pod alone that another pod has, on any node.
    exclusive: bool,
}

/// What a waiting claim gets on a node.
pub(crate) enum Place<'a> {
    Volume(Claim<'a>, (&'a Meta, &'a PersistentVolume)),
    Provision(Claim<'a>),
}

/// What comes next once a node is chosen.
pub(crate) enum Step {
    Write(Action),
    Wait,
    Done,
}

impl<'a> Claims<'a> {
    /// # Errors
    /// The sentence that says why the pod can be on no node for now.
    pub(crate) fn of(world: &'a World, meta: &Meta, pod: &Pod) -> Result<Self, String> {
        let mut claims = Self { bound: Vec::new(), waiting: Vec::new(), exclusive: false };
        let namespace = &meta.key.namespace;
        let mut found = Vec::new();
        for (_, name, ephemeral) in claims_of(pod) {
            let Some(claim) = world.claim(namespace, &name) else {
                return Err(match ephemeral {
                    true => {
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                    }
                    false => format!("persistentvolumeclaim {name:?} not found"),
                });
            };
            if claim_phase(claim.1) == "Lost" {
                let volume = volume_of(claim.1);
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.0.deleting.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if ephemeral && !is_made_for(claim.0, &meta.uid) {
                let pod = &meta.key.name;
                return Err(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ));
            }
            // Two volumes of a pod may be one claim, which needs one volume.
            if found.iter().all(|(other, _): &Claim<'_>| other.key != claim.0.key) {
                found.push(claim);
            }
        }
        for claim in found {
            claims.exclusive |= has_other_user(world, meta, claim);
            let class = world.class(class_of(claim.1)).map(|(_, c)| c);
            match class {
                _ if is_bound(claim.1) => claims.bound.push(claim),
                Some(class) if binds_late(Some(class)) && volume_of(claim.1).is_empty() => {
                    claims.waiting.push((claim, class));
                }
                _ => return Err("pod has unbound immediate PersistentVolumeClaims".into()),
            }
        }
        let gone = claims.bound.iter().map(|(_, c)| volume_of(c)).find(|name| world.volume(name).is_none());
        if let Some(name) = gone {
            return Err(format!("persistentvolume {name:?} not found"));
        }
        // The small ones choose first, so that they leave the large volumes to the others.
        claims.waiting.sort_by_key(|((_, claim), _)| requested(claim));
        Ok(claims)
    }

    /// The claims that are bound.
    pub(crate) fn incarnations(&self) -> Vec<(Key, String)> {
        self.bound.iter().map(|(meta, _)| (meta.key.clone(), meta.uid.clone())).collect()
    }

    /// Of the claims, those that are for one pod alone.
    pub(crate) fn for_one_pod(&self) -> Vec<String> {
        self.bound.iter().filter(|c| is_for_one_pod(c.1)).map(|(meta, _)| meta.key.name.to_string()).collect()
    }

    /// What the waiting claims would get on a node.
    ///
    /// # Errors
    /// What keeps the pod off it: the first filter's objections, in upstream's order of filters.
    pub(crate) fn place(
        &self,
        world: &'a World,
        meta: &Meta,
        pod: &Pod,
        node: &Node,
    ) -> Result<Vec<Place<'a>>, Vec<Obstacle>> {
        let refused = |reason: &str| Err(vec![Obstacle::by_pods(reason)]);
        if attach::disk_taken(world, pod, node) {
            return refused("node(s) had no available disk");
        }
        if self.exclusive {
            return refused(
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
                 another pod",
            );
        }
        if attach::too_many(world, meta, pod, node) {
            return refused("node(s) exceed max volume count");
        }
        let volumes = || self.bound.iter().filter_map(|(_, claim)| world.volume(volume_of(claim)));
        let mut found = Vec::new();
        if !volumes().all(|(_, volume)| reached(world, volume, node)) {
            found.push(Obstacle::fixed("node(s) didn't match PersistentVolume's node affinity"));
        }
        let places = self.choose(world, node);
        if let Err(obstacle) = places {
            found.push(Obstacle::fixed(obstacle));
        }
        let in_zone = |volume| translated(world, volume, node).is_some() || in_zone(volume, node);
        if found.is_empty() && !volumes().all(|(_, volume)| in_zone(volume)) {
            found.push(Obstacle::fixed("node(s) had no available volume zone"));
        }
        if found.is_empty() { Ok(places.unwrap_or_default()) } else { Err(found) }
    }

    /// A volume, or a place to make one, for each waiting claim.
    fn choose(&self, world: &'a World, node: &Node) -> Result<Vec<Place<'a>>, &'static str> {
        const NONE: &str = "node(s) didn't find available persistent volumes to bind";
        let mut places = Vec::new();
        let mut taken = Vec::new();
        for (claim, class) in &self.waiting {
            let selected = annotation(&claim.1.metadata, SELECTED_NODE);
            if selected.is_some_and(|name| Some(name) != node.metadata.name.as_deref()) {
                return Err(NONE);
            }
            let volume = best_volume(world, *claim, claim::Place::On(node), &taken);
            if let Some(volume) = volume.filter(|_| selected.is_none()) {
                taken.push(&*volume.0.key.name);
                places.push(Place::Volume(*claim, volume));
            } else if class.provisioner != NO_PROVISIONER && allowed(world, class, node) {
                // One that is being made has its room.
                if selected.is_none() && !has_room(world, claim.1, class, node) {
                    return Err("node(s) did not have enough free storage");
                }
                places.push(Place::Provision(*claim));
            } else {
                return Err(NONE);
            }
        }
        Ok(places)
    }
}

/// Whether the driver of a class has room for a claim's volume on a node, as far as it says so.
fn has_room(world: &World, claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> bool {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    !capacity::is_told(world, &class.provisioner)
        || capacity::has_room(world, name, node.metadata.labels.as_ref(), bytes(claim::requested(claim)))
}

/// What keeps the pod's claims, as their own status keeps it. A claim that was made just now has no such reason yet; one
/// that is made for the pod is about to be.
pub(crate) fn claims_reasons(world: &World, meta: &Meta, pod: &Pod) -> String {
    let told = claims_of(pod).into_iter().filter_map(|(volume, name, ephemeral)| {
        let Some((_, claim)) = world.claim(&meta.key.namespace, &name) else {
            return (!ephemeral).then(|| format!(" Volume {volume:?}, claim {name:?}: It does not exist."));
        };
        let why = kept(claim).filter(|c| !is_bound(claim) && !repeats_pod(c))?.message.as_deref()?;
        Some(format!(" Volume {volume:?}, claim {name:?}: {why}."))
    });
    told.collect()
}

fn is_for_one_pod(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    modes.iter().any(|m| m == "ReadWriteOncePod")
}

fn has_other_user(world: &World, pod: &Meta, (meta, claim): Claim<'_>) -> bool {
    is_for_one_pod(claim)
        && world
            .pods_naming(&meta.key.namespace, &meta.key.name)
            .any(|(m, p)| m.uid != pod.uid && claim::runs_with(p, &meta.key.name))
}

/// Whether a driver is registered on a node, so that the driver's own topology labels are there too.
fn registered(world: &World, driver: Option<&str>, node: &Node) -> bool {
    let of_node = world.csi_node(node.metadata.name.as_deref().unwrap_or_default());
    driver.is_some_and(|name| of_node.is_some_and(|(_, n)| n.spec.drivers.iter().any(|d| d.name == name)))
}

/// A cloud's disk as its driver has it, where that is registered on the node: the driver's own key says then where it is.
fn translated(world: &World, volume: &PersistentVolume, node: &Node) -> Option<PersistentVolume> {
    let plugin = volume.spec.as_ref().and_then(in_tree::plugin_of_volume)?;
    registered(world, in_tree::driver_of(plugin), node)
        .then(|| in_tree::volume_to_csi(volume).ok())?
        .map(Cow::into_owned)
}

fn reached(world: &World, volume: &PersistentVolume, node: &Node) -> bool {
    match translated(world, volume, node) {
        Some(translated) => reaches(&translated, node),
        None => reaches(volume, node),
    }
}

/// Whether a class lets its provisioner make volumes for a node; an in-tree one, as its driver is told.
fn allowed(world: &World, class: &StorageClass, node: &Node) -> bool {
    let translated = in_tree::class_to_csi(class).ok();
    let driver = in_tree::driver_of(&class.provisioner);
    let class = translated.as_deref().filter(|_| registered(world, driver, node)).unwrap_or(class);
    let Some(terms) = class.allowed_topologies.as_ref().filter(|t| !t.is_empty()) else { return true };
    let labels = node.metadata.labels.as_ref();
    terms.iter().any(|term| {
        let wanted = term.match_label_expressions.as_deref().unwrap_or_default();
        !wanted.is_empty()
            && wanted.iter().all(|e| labels.and_then(|l| l.get(&e.key)).is_some_and(|value| e.values.contains(value)))
    })
}

/// Reserves one volume, or asks for one, at a time; the binder finishes what is begun here.
pub(crate) fn next_step(places: &[Place<'_>], node: &str) -> Step {
    let write = places.iter().find_map(|place| match place {
        Place::Volume((meta, _), volume) => binder::reserve(meta, *volume),
        Place::Provision((meta, claim)) if annotation(&claim.metadata, SELECTED_NODE).is_none() => {
            Some(Action::patch(meta, json!({ "metadata": { "annotations": { SELECTED_NODE: node } } })))
        }
        Place::Provision(_) => None,
    });
    match write {
        Some(action) => Step::Write(action),
        None if places.is_empty() => Step::Done,
        None => Step::Wait,
    }
}
