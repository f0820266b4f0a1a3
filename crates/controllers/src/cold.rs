//! An object that is folded up while nobody looks at it: typed volumes and claims take five times the room of their JSON.
use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use serde::{Serialize, de::DeserializeOwned};

/// A shared object, whole or as JSON. Looking at it unfolds it; [`Cold::fold`] takes that back.
///
/// - C1: what is looked at is what was put in, folded in between or not; times have whole seconds, as everywhere. (test)
pub struct Cold<T>(Arc<State<T>>);

struct State<T> {
    whole: OnceLock<Box<T>>,
    /// Set once it was folded, for good: an object does not change.
    folded: OnceLock<Box<[u8]>>,
}

impl<T> From<T> for Cold<T> {
    fn from(object: T) -> Self {
        Self(Arc::new(State { whole: OnceLock::from(Box::new(object)), folded: OnceLock::new() }))
    }
}

impl<T: Serialize> Cold<T> {
    /// Gives the whole object up, unless somebody else shares it now or it cannot be written.
    pub(crate) fn fold(&mut self) {
        let Some(state) = Arc::get_mut(&mut self.0) else { return };
        let Some(whole) = state.whole.take() else { return };
        match serde_json::to_vec(&whole) {
            Ok(bytes) => drop(state.folded.set(bytes.into())),
            Err(_) => state.whole = OnceLock::from(whole),
        }
    }
}

impl<T: DeserializeOwned> Deref for Cold<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.whole.get_or_init(|| {
            let bytes = self.0.folded.get().expect("it is whole or folded");
            serde_json::from_slice(bytes).expect("it was written from an object of this type")
        })
    }
}

impl<T> Clone for Cold<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Cold<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cold").field("folded", &self.0.whole.get().is_none()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_folded_is_what_was_put_in() {
        let object: PersistentVolume = serde_json::from_value(json!({
            "metadata": { "name": "v", "annotations": { "a": "b" }, "deletionTimestamp": "2030-01-01T00:00:00Z" },
            "spec": { "capacity": { "storage": "1Gi" }, "claimRef": { "uid": "u" }, "csi": { "driver": "d", "volumeHandle": "h" } },
            "status": { "phase": "Bound" },
        }))
        .unwrap();
        let mut cold = Cold::from(object.clone());
        let shared = cold.clone();
        cold.fold();
        assert!(cold.0.whole.get().is_some(), "somebody looks at it");
        drop(shared);
        for _ in 0..2 {
            cold.fold();
            assert!(cold.0.whole.get().is_none());
            assert_eq!(*cold, object);
        }
    }
}
