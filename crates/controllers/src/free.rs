//! The volumes that are there for the taking, ordered so that the best one for a claim is found without a look at all.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::claim::{attributes_of, capacity, class_of, class_of_volume, modes_of, requested, volume_mode_of};

/// What a volume must have in common with a claim besides its class and its size.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Sort {
    /// Access modes; the number of different ones comes first in the order.
    modes: (usize, BTreeSet<String>),
    volume_mode: String,
    attributes: String,
}

/// Volumes of one sort, by size, then by name.
type Shelf = BTreeSet<(Quantity, Arc<str>)>;

/// Free volumes by class and sort. There are few sorts, however many volumes there are.
#[derive(Debug, Default)]
pub(crate) struct Free(HashMap<String, BTreeMap<Sort, Shelf>>);

impl Free {
    /// Puts a free volume in, or takes it out in the state that it was put in.
    pub(crate) fn set(&mut self, name: &Arc<str>, volume: &PersistentVolume, add: bool) {
        let class = class_of_volume(volume);
        let modes: BTreeSet<String> = modes_of(volume).iter().cloned().collect();
        let sort = Sort {
            modes: (modes.len(), modes),
            volume_mode: volume_mode_of(volume).to_owned(),
            attributes: attributes_of(volume).to_owned(),
        };
        let item = (volume.spec.as_ref().map_or(Quantity::ZERO, capacity), name.clone());
        if add {
            self.0.entry(class.to_owned()).or_default().entry(sort).or_default().insert(item);
            return;
        }
        let Some(sorts) = self.0.get_mut(class) else { return };
        if let Some(shelf) = sorts.get_mut(&sort) {
            shelf.remove(&item);
            if shelf.is_empty() {
                sorts.remove(&sort);
            }
        }
        if sorts.is_empty() {
            self.0.remove(class);
        }
    }

    /// How many a class has.
    pub(crate) fn count(&self, class: &str) -> usize {
        self.0.get(class).map_or(0, |sorts| sorts.values().map(BTreeSet::len).sum())
    }

    /// The smallest volume that a claim can have and that `keep` lets pass; with `few_modes` the smallest of those with
    /// the fewest access modes. The name breaks ties.
    pub(crate) fn best<'a>(
        &'a self,
        claim: &PersistentVolumeClaim,
        few_modes: bool,
        keep: impl Fn(&str) -> bool,
    ) -> Option<&'a str> {
        let least = (requested(claim), Arc::from(""));
        let wanted = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
        let sorts = self.0.get(class_of(claim))?.iter().filter(|(sort, _)| {
            sort.volume_mode == crate::claim::mode_of(claim)
                && sort.attributes == crate::claim::attributes_wanted(claim)
                && wanted.iter().all(|m| sort.modes.1.contains(m))
        });
        let firsts = sorts.filter_map(|(sort, shelf)| {
            let modes = if few_modes { sort.modes.0 } else { 0 };
            shelf.range(least.clone()..).find(|(_, name)| keep(name)).map(|(size, name)| (modes, size, name))
        });
        firsts.min().map(|(_, _, name)| &**name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn volume(size: &str, modes: &[&str]) -> PersistentVolume {
        from_value(json!({ "spec": { "capacity": { "storage": size }, "accessModes": modes } })).unwrap()
    }
    fn claim(size: &str, modes: &[&str]) -> PersistentVolumeClaim {
        from_value(json!({ "spec": { "resources": { "requests": { "storage": size } }, "accessModes": modes } }))
            .unwrap()
    }

    #[test]
    fn the_best_is_the_smallest_of_the_fewest_modes() {
        let (one, two) = (&["ReadWriteOnce"][..], &["ReadWriteOnce", "ReadOnlyMany"][..]);
        let mut free = Free::default();
        for (name, size, modes) in [("c", "2Gi", one), ("b", "2048Mi", one), ("a", "1Gi", two), ("d", "5Gi", one)] {
            free.set(&name.into(), &volume(size, modes), true);
        }
        let best = |free: &Free, size, modes, few| free.best(&claim(size, modes), few, |_| true).map(str::to_owned);
        assert_eq!(best(&free, "1Gi", one, true).as_deref(), Some("b"));
        assert_eq!(best(&free, "1Gi", one, false).as_deref(), Some("a"));
        assert_eq!(best(&free, "1Gi", two, true).as_deref(), Some("a"));
        assert_eq!(best(&free, "3Gi", one, true).as_deref(), Some("d"));
        assert_eq!(best(&free, "6Gi", one, true), None);
        assert_eq!(free.best(&claim("1Gi", one), true, |name| name != "b"), Some("c"));
        free.set(&"b".into(), &volume("2Gi", one), false);
        assert_eq!(best(&free, "1Gi", one, true).as_deref(), Some("c"));
        for (name, size, modes) in [("c", "2Gi", one), ("a", "1Gi", two), ("d", "5Gi", one)] {
            free.set(&name.into(), &volume(size, modes), false);
        }
        assert_eq!(free.count(""), 0);
    }
}
