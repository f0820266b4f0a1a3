//! Who may use an image that is here: a pulled one belongs to those who could have pulled it themselves.
//!
//! Kept per repository with the image's record. What an import gave is everybody's, and so is what was pulled by nobody in
//! particular. Of users, only salted hashes are kept; they show that somebody has the same password, not what it is.
use std::{fs::File, io::Read};

use serde::{Deserialize, Serialize};

use crate::{
    error::ImageError, manifest::digest, model::Image, reference::normalize, registry::Credentials, store::Images,
};

/// The users of one repository's image that are remembered; who came first is forgotten first, and asks the registry again.
const MOST: usize = 100;
/// Of a salt.
const BYTES: usize = 16;

/// Who pulled an image from one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// The registry gives it to everybody, or the operator does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    everybody: bool,
    /// `SALT sha256:HASH` of each user and password that the registry gave it to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    users: Vec<String>,
}

impl Access {
    pub fn of_everybody() -> Self {
        Self { everybody: true, users: vec![] }
    }

    pub fn of(user: &Credentials) -> Result<Self, ImageError> {
        let mut salt = [0; BYTES];
        let random = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut salt));
        random.map_err(crate::error::file("read", "/dev/urandom"))?;
        let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { everybody: false, users: vec![hashed(&salt, user)] })
    }

    fn is_for(&self, user: &Credentials) -> bool {
        let known = |kept: &String| kept.split_once(' ').is_some_and(|(salt, _)| *kept == hashed(salt, user));
        self.everybody || self.users.iter().any(known)
    }

    pub fn merge(&mut self, new: Self) {
        self.everybody |= new.everybody;
        self.users.extend(new.users);
        self.users.dedup();
        let surplus = self.users.len().saturating_sub(MOST);
        self.users.drain(..surplus);
    }
}

fn hashed(salt: &str, user: &Credentials) -> String {
    // The length keeps one pair from looking like another.
    let text = format!("{salt} {} {}{}", user.user.len(), user.user, user.password);
    format!("{salt} {}", digest(text.as_bytes()))
}

impl Image {
    /// Whether everybody may use it by this name, written as users do. An id names no repository: there, any that is
    /// open counts. So does a repository of which nobody noted who pulled from it (records of older versions).
    pub fn is_everybodys(&self, name: &str) -> bool {
        self.imported_as(name) || self.ways(name).iter().any(|access| access.is_none_or(|a| a.everybody))
    }

    /// What is noted about the repository of this name, or about all if it is an id.
    fn ways(&self, name: &str) -> Vec<Option<&Access>> {
        let repository = |full: &String| normalize(full).ok().map(|r| r.repository());
        let all = || self.names.iter().chain(&self.repo_digests);
        let meant = normalize(name).ok().filter(|r| {
            let full = r.digest().map_or_else(|| r.to_string(), |d| r.at_digest(d));
            all().any(|n| *n == full)
        });
        match meant {
            Some(reference) => vec![self.pulled.get(&reference.repository())],
            None => all().filter_map(repository).map(|r| self.pulled.get(&r)).collect(),
        }
    }
}

impl Images {
    /// Whether one of these users is known to be given `image` by the registry of `name`, as a pull that was theirs, or
    /// one with the same password, has shown.
    pub fn is_known_for(&self, image: &Image, name: &str, users: &[Credentials]) -> bool {
        let Ok(reference) = normalize(name) else { return false };
        let hosts = self.inner.puller.endpoints(reference.domain());
        let fits = |user: &&Credentials| hosts.iter().any(|(host, _)| user.matches(host, reference.path()).is_some());
        let ways = image.ways(name);
        users.iter().filter(fits).any(|user| ways.iter().flatten().any(|access| access.is_for(user)))
    }

    /// Lets everybody use what `name` means: the operator pulled it for the node.
    pub fn give_to_everybody(&self, name: &str) -> Result<(), ImageError> {
        let Some(found) = self.find(name)? else { return Ok(()) };
        let Some(repository) = normalize(name).ok().map(|r| r.repository()) else { return Ok(()) };
        self.inner.update(|list| {
            for image in list.iter_mut().filter(|image| image.id == found.id) {
                image.pulled.entry(repository.clone()).or_default().merge(Access::of_everybody());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(user: &str, password: &str) -> Credentials {
        Credentials { registry: "r.test".into(), user: user.into(), password: password.into() }
    }

    #[test]
    fn users_are_known_by_their_password_and_kept_without_it() {
        let mut access = Access::of(&user("ab", "c-secret")).expect("salt");
        for (other, want) in [
            (user("ab", "c-secret"), true),
            (user("ab", "other"), false),
            (user("a", "bc-secret"), false),
            (user("", "abc-secret"), false),
        ] {
            assert_eq!(access.is_for(&other), want, "{other:?}");
        }
        let again = Access::of(&user("ab", "c-secret")).expect("salt");
        assert_ne!(access, again, "a salt of its own");
        let text = serde_json::to_string(&access).expect("JSON");
        assert!(!text.contains("secret") && !text.contains("\"ab"), "{text}");
        for n in 0..MOST {
            access.merge(Access::of(&user("n", &n.to_string())).expect("salt"));
        }
        assert!(!access.is_for(&user("ab", "c-secret")) && access.is_for(&user("n", "0")));
        assert_eq!(access.users.len(), MOST);
        access.merge(Access::of_everybody());
        assert!(access.is_for(&user("any", "body")));
    }
}
