//! What a volume's Secret says, by the names that open-iscsi has for it.
use std::collections::BTreeMap;

use iscsi::Chap;

use super::trouble;
use crate::{
    contract::{IscsiSource, Machine},
    error::VolumeError,
};

pub(super) const SESSION: [&str; 4] = [
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];
pub(super) const DISCOVERY: [&str; 4] = [
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];

/// What the Secret says, as far as the volume asks for it; all that it has to say is there.
pub(super) struct Words {
    values: BTreeMap<String, String>,
    /// Namespace and name.
    secret: String,
}

impl Words {
    /// Reads the volume's Secret as it is now.
    pub(super) fn read(source: &IscsiSource, on: &Machine<'_>) -> Result<Self, VolumeError> {
        let mut words = Self { values: BTreeMap::new(), secret: String::new() };
        if !source.chap_session && !source.chap_discovery {
            return Ok(words);
        }
        let Some(secret) = &source.secret else {
            return Err(trouble(
                &source.name,
                "iscsi.secretRef is missing, which chapAuthSession and chapAuthDiscovery need",
            ));
        };
        words.secret = format!("{}/{}", secret.namespace, secret.name);
        words.values = on.drivers.secret(secret).map_err(|why| {
            let why = format!("couldn't get secret {} error: {why}; make it, or change iscsi.secretRef", words.secret);
            trouble(&source.name, why)
        })?;
        let asked = [
            (source.chap_session, "chapAuthSession", SESSION),
            (source.chap_discovery, "chapAuthDiscovery", DISCOVERY),
        ];
        for (_, field, keys) in asked.iter().filter(|(asked, ..)| *asked) {
            // Without the second pair the target does not prove who it is, which is the usual way.
            for key in &keys[..2] {
                if words.get(key).is_none() {
                    let why = format!("secret {} has no key {key}, which iscsi.{field} needs", words.secret);
                    return Err(trouble(&source.name, why));
                }
            }
            if words.pairs(keys).any(|(_, value)| value.contains(['\n', '\r', '\0'])) {
                let why = format!("secret {} has a value of more than one line for iscsi.{field}", words.secret);
                return Err(trouble(&source.name, why));
            }
        }
        Ok(words)
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Those of the keys that there are.
    pub(super) fn pairs<'a>(&'a self, keys: &'a [&'static str]) -> impl Iterator<Item = (&'static str, &'a str)> {
        keys.iter().filter_map(|key| Some((*key, self.get(key)?)))
    }

    /// Whether the target has to prove who it is.
    pub(super) fn asks_for_proof(&self, keys: &[&'static str; 4]) -> bool {
        keys[2..].iter().any(|key| self.get(key).is_some())
    }

    /// For a session without the kernel, where no target proves who it is: who asks for that is refused.
    pub(super) fn session(&self, source: &IscsiSource) -> Result<Option<Chap>, VolumeError> {
        let asked = [(source.chap_session, &SESSION), (source.chap_discovery, &DISCOVERY)];
        let mut proofs = asked.iter().filter(|(asked, _)| *asked).flat_map(|(_, keys)| self.pairs(&keys[2..]));
        if let Some((key, _)) = proofs.next() {
            let why = format!(
                "secret {} has {key}: that the target proves who it is needs the kernel's initiator; load the module \
                 iscsi_tcp and install open-iscsi on this node, or take the key away",
                self.secret
            );
            return Err(trouble(&source.name, why));
        }
        if !source.chap_session {
            return Ok(None);
        }
        let text = |key| self.get(key).unwrap_or_default().to_owned();
        Ok(Some(Chap { user: text(SESSION[0]), secret: text(SESSION[1]) }))
    }
}
