//! The parameters of a class.
use std::collections::BTreeMap;

use csi::Status;
use pool::Backend;

/// What a provisioner adds for its own use.
const OF_PROVISIONER: &str = "csi.storage.k8s.io/";

/// What a class asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    pub backend: Backend,
    pub overcommit: bool,
}

impl Parameters {
    /// # Errors
    /// A parameter or value that is not known: a typing error that was ignored would be found when data is lost.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, Status> {
        let mut parsed = Self { backend: Backend::Image, overcommit: false };
        for (name, value) in given.iter().filter(|(name, _)| !name.starts_with(OF_PROVISIONER)) {
            let wrong = |known: &str| {
                Err(Status::invalid_argument(format!(
                    "parameter {name} of the class is {value:?}, which is none of {known}"
                )))
            };
            match name.as_str() {
                "backend" => match value.as_str() {
                    "image" => parsed.backend = Backend::Image,
                    "directory" => parsed.backend = Backend::Directory,
                    _ => return wrong("image, directory"),
                },
                "overcommit" => match value.as_str() {
                    "true" => parsed.overcommit = true,
                    "false" => parsed.overcommit = false,
                    _ => return wrong("true, false"),
                },
                _ => {
                    let why = format!("parameter {name:?} of the class is unknown; there are backend and overcommit");
                    return Err(Status::invalid_argument(why));
                }
            }
        }
        Ok(parsed)
    }
}

#[test]
fn parameters() {
    let parse = |given: &[(&str, &str)]| {
        Parameters::parse(&given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    };
    let default = Parameters { backend: Backend::Image, overcommit: false };
    assert_eq!(parse(&[]).expect("default"), default);
    assert_eq!(parse(&[("csi.storage.k8s.io/pvc/name", "x")]).expect("not for us"), default);
    let given = parse(&[("backend", "directory"), ("overcommit", "true")]).expect("known");
    assert_eq!(given, Parameters { backend: Backend::Directory, overcommit: true });
    for wrong in [("backend", "tape"), ("overcommit", "maybe"), ("backed", "image")] {
        let error = parse(&[wrong]).expect_err("wrong");
        assert!(error.message().contains(wrong.0), "{error}");
    }
}
