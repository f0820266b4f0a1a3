//! Who has which persistent volume on this node, and who has to wait for whom.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use parking_lot::Mutex;
use tokio::sync::Notify;
use volumes::Hold;

/// What `ReadWriteOnce` means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RwoScope {
    /// One node, any number of its pods: as upstream.
    #[default]
    Node,
    /// One pod at a time.
    Pod,
}

/// Why a volume is for one pod alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    OncePod,
    Scope,
}

/// Whether the access modes let only one pod at a time have the volume. Where there are several modes, it is not known
/// which of them the pod means.
pub fn alone(claim: &PersistentVolumeClaim, volume: &PersistentVolume, scope: RwoScope) -> Option<Alone> {
    let of_volume = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    let of_claim = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    match of_claim {
        _ if of_volume == ["ReadWriteOncePod"] => Some(Alone::OncePod),
        [mode] if mode == "ReadWriteOnce" && scope == RwoScope::Pod => Some(Alone::Scope),
        _ => None,
    }
}

impl Alone {
    /// The sentence for a pod that waits, upstream's where it has one.
    pub fn refusal(self, claim: &str, holder: &str) -> String {
        match self {
            Self::OncePod => {
                format!("volume uses the ReadWriteOncePod access mode and is already in use by another pod: {holder}")
            }
            Self::Scope => format!(
                "claim {claim} is ReadWriteOnce and in use by pod {holder}; this node lets one pod at a time use such a \
                 claim (--rwo-scope=pod), and goes on when that pod has ended"
            ),
        }
    }
}

/// One volume that a pod asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    pub hold: Hold,
    pub alone: Option<Alone>,
}

/// The table of holders.
#[derive(Default)]
pub struct Holders {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Persistent volume to pods: UID and `namespace/name`.
    pods: HashMap<String, BTreeMap<String, String>>,
    waiting: Vec<Weak<Notify>>,
}

impl Holders {
    /// Takes in what an earlier process has marked on disk.
    pub fn adopt(&self, holds: Vec<Hold>) {
        let mut table = self.table.lock();
        for Hold { pod_uid, pod, volume } in holds {
            let shown = if pod.is_empty() { pod_uid.clone() } else { pod };
            table.pods.entry(volume).or_default().insert(pod_uid, shown);
        }
    }

    /// Gives a pod all that it wishes, or nothing: two pods never wait for each other with half of it in hand.
    ///
    /// # Errors
    /// Each volume that another pod has, with that pod's name; `notify` is woken when a pod lets go of something.
    pub fn take(&self, wishes: &[Wish], notify: &Arc<Notify>) -> Result<(), BTreeMap<String, String>> {
        let mut table = self.table.lock();
        let rival = |wish: &&Wish| {
            let pods = table.pods.get(&wish.hold.volume).filter(|_| wish.alone.is_some())?;
            let (_, pod) = pods.iter().find(|(uid, _)| **uid != wish.hold.pod_uid)?;
            Some((wish.hold.volume.clone(), pod.clone()))
        };
        let rivals: BTreeMap<String, String> = wishes.iter().filter_map(|wish| rival(&wish)).collect();
        if !rivals.is_empty() {
            let weak = Arc::downgrade(notify);
            table.waiting.retain(|w| w.strong_count() > 0 && !w.ptr_eq(&weak));
            table.waiting.push(weak);
            return Err(rivals);
        }
        for Wish { hold, .. } in wishes {
            table.pods.entry(hold.volume.clone()).or_default().insert(hold.pod_uid.clone(), hold.pod.clone());
        }
        Ok(())
    }

    /// Takes everything from a pod of which nothing is left.
    pub fn release(&self, pod_uid: &str) {
        let mut table = self.table.lock();
        let before: usize = table.pods.values().map(BTreeMap::len).sum();
        table.pods.retain(|_, pods| {
            pods.remove(pod_uid);
            !pods.is_empty()
        });
        if table.pods.values().map(BTreeMap::len).sum::<usize>() < before {
            table.waiting.drain(..).filter_map(|w| w.upgrade()).for_each(|n| n.notify_one());
        }
    }

    /// The pods that have a volume, as `namespace/name`.
    pub fn of(&self, volume: &str) -> Vec<String> {
        self.table.lock().pods.get(volume).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn modes_say_whether_one_pod_has_a_volume_alone() {
        let (once, pod, many, read) = ("ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany");
        let object = |modes: &[&str]| json!({"metadata": {}, "spec": {"accessModes": modes}});
        type Row<'a> = (&'a [&'a str], &'a [&'a str], RwoScope, Option<Alone>);
        let table: &[Row<'_>] = &[
            (&[once], &[once], RwoScope::Node, None),
            (&[once], &[once], RwoScope::Pod, Some(Alone::Scope)),
            (&[once], &[once, many], RwoScope::Pod, Some(Alone::Scope)),
            (&[once, many], &[once, many], RwoScope::Pod, None),
            (&[read], &[once, read], RwoScope::Pod, None),
            (&[many], &[many], RwoScope::Pod, None),
            (&[pod], &[pod], RwoScope::Node, Some(Alone::OncePod)),
            (&[pod], &[pod], RwoScope::Pod, Some(Alone::OncePod)),
            (&[], &[], RwoScope::Pod, None),
        ];
        for (claim, volume, scope, wanted) in table {
            let parse = |modes: &[&str]| -> Value { object(modes) };
            let claim_object = from_value(parse(claim)).unwrap();
            let volume_object = from_value(parse(volume)).unwrap();
            assert_eq!(alone(&claim_object, &volume_object, *scope), *wanted, "{claim:?} {volume:?} {scope:?}");
        }
    }

    fn wish(pod: &str, volume: &str, alone: Option<Alone>) -> Wish {
        let hold = Hold { pod_uid: format!("uid-{pod}"), pod: format!("ns/{pod}"), volume: volume.into() };
        Wish { hold, alone }
    }

    #[tokio::test]
    async fn one_pod_at_a_time_and_all_or_nothing() {
        let holders = Holders::default();
        let notify = Arc::new(Notify::new());
        let once = Some(Alone::OncePod);
        let take = |wishes: &[Wish]| holders.take(wishes, &notify);
        assert_eq!(take(&[wish("p", "a", once)]), Ok(()));
        assert_eq!(take(&[wish("p", "a", once)]), Ok(()), "its own");
        let refused = BTreeMap::from([("a".to_owned(), "ns/p".to_owned())]);
        assert_eq!(take(&[wish("q", "b", once), wish("q", "a", once)]), Err(refused));
        assert_eq!(holders.of("b"), [""; 0], "half a wish was granted");
        assert_eq!(take(&[wish("q", "s", None)]), Ok(()));
        assert_eq!(take(&[wish("r", "s", None)]), Ok(()));
        assert_eq!(holders.of("s"), ["ns/q", "ns/r"]);
        holders.release("uid-stranger");
        holders.release("uid-p");
        notify.notified().await;
        assert_eq!(take(&[wish("q", "b", once), wish("q", "a", once)]), Ok(()));
        // After a restart the marks on disk say who has what.
        let again = Holders::default();
        again.adopt(vec![wish("q", "a", once).hold]);
        assert_eq!(again.take(&[wish("p", "a", once)], &notify).unwrap_err()["a"], "ns/q");
    }
}
