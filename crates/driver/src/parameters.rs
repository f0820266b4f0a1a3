//! The parameters of a class.
use std::collections::BTreeMap;

use csi::Status;
use pool::Backend;

/// What a provisioner adds for its own use.
const OF_PROVISIONER: &str = "csi.storage.k8s.io/";
/// The one of these that is for us, where the provisioner did not make it part of the capability.
const FILESYSTEM: &str = "csi.storage.k8s.io/fstype";

/// What a class asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// `backend`: `image`, `directory` or `subvolume`.
    pub backend: Backend,
    /// `overcommit`: do not keep the volume's size free for it.
    pub overcommit: bool,
    /// `quota=required`: no directory without a limit.
    pub limit_required: bool,
    /// `csi.storage.k8s.io/fstype`: the filesystem, where the capability names none.
    pub filesystem: Option<String>,
    /// `mkfsOptions`: words for the program that makes the filesystem, which the pool judges.
    pub format: Vec<String>,
}

impl Parameters {
    /// # Errors
    /// A parameter or value that is not known: a typing error that was ignored would be found when data is lost.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, Status> {
        let filesystem = given.get(FILESYSTEM).filter(|kind| !kind.is_empty()).cloned();
        let mut parsed = Self { filesystem, ..Self::default() };
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
                    "subvolume" => parsed.backend = Backend::Subvolume,
                    _ => return wrong("image, directory, subvolume"),
                },
                "quota" => match value.as_str() {
                    "required" => parsed.limit_required = true,
                    "optional" => parsed.limit_required = false,
                    _ => return wrong("required, optional"),
                },
                "mkfsOptions" => parsed.format = value.split_whitespace().map(str::to_owned).collect(),
                "overcommit" => match value.as_str() {
                    "true" => parsed.overcommit = true,
                    "false" => parsed.overcommit = false,
                    _ => return wrong("true, false"),
                },
                _ => {
                    let why = format!(
                        "parameter {name:?} of the class is unknown; there are backend, mkfsOptions, overcommit and quota"
                    );
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
    let default = Parameters::default();
    assert_eq!((parse(&[]).expect("default"), default.backend), (default.clone(), Backend::Image));
    assert_eq!(parse(&[("csi.storage.k8s.io/pvc/name", "x")]).expect("not for us"), default);
    let given = parse(&[("backend", "directory"), ("overcommit", "true")]).expect("known");
    assert_eq!(given, Parameters { backend: Backend::Directory, overcommit: true, ..default.clone() });
    let given = parse(&[("quota", "required"), ("mkfsOptions", " -i  8192 ")]).expect("known");
    assert_eq!(given, Parameters { limit_required: true, format: vec!["-i".into(), "8192".into()], ..default });
    assert_eq!(parse(&[("csi.storage.k8s.io/fstype", "xfs")]).expect("known").filesystem.as_deref(), Some("xfs"));
    for wrong in [("backend", "tape"), ("overcommit", "maybe"), ("quota", "some"), ("backed", "image")] {
        let error = parse(&[wrong]).expect_err("wrong");
        assert!(error.message().contains(wrong.0), "{error}");
    }
}
