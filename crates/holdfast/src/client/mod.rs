//! The few verbs that a machine without kubectl needs. A plain client: works against any Kubernetes API.
pub mod apply;
pub mod delete;
pub mod describe;
pub mod exec;
pub mod get;
pub mod logs;
pub mod port_forward;
mod resources;
pub mod why;

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use crate::{
    cli,
    errors::{Doing, While, said},
};

pub use resources::{Resource, Resources};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A connection and the namespace that commands act in.
pub struct Session {
    pub client: kube::Client,
    pub namespace: String,
}

impl Session {
    /// Connects as the command line says.
    pub async fn open(server: &cli::Server) -> Result<Self, Error> {
        let Some(path) = kubeconfig_path(server) else {
            return said("no kubeconfig found; give --kubeconfig FILE or set KUBECONFIG");
        };
        let client = connect(&path).await?;
        let namespace = server.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { client, namespace })
    }

    /// GETs a path and reads the JSON answer.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.send("GET", path, "application/json", None).await
    }

    /// Sends one request; `body` comes with its content type.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Value, Error> {
        let mut request = http::Request::builder().method(method).uri(path).header(http::header::ACCEPT, accept);
        if let Some((content_type, _)) = &body {
            request = request.header(http::header::CONTENT_TYPE, *content_type);
        }
        let request = request.body(body.map(|(_, bytes)| bytes).unwrap_or_default())?;
        match self.client.request::<Value>(request).await {
            Ok(value) => Ok(value),
            // The server's own sentence is all that the reader needs.
            Err(kube::Error::Api(status)) => {
                Err(Box::new(ApiFailure { code: status.code, message: status.message.clone() }))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The server refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiFailure {
    pub code: u16,
    message: String,
}

/// Whether an error is the server's "not found".
pub fn is_not_found(error: &Error) -> bool {
    error.downcast_ref::<ApiFailure>().is_some_and(|failure| failure.code == 404)
}

/// Whether a list's next page is no longer to be had.
pub fn is_expired(error: &Error) -> bool {
    error.downcast_ref::<ApiFailure>().is_some_and(|failure| failure.code == 410)
}

/// Connects with a kubeconfig file.
pub async fn connect(path: &Path) -> Result<kube::Client, While> {
    let what = || format!("use kubeconfig {}", path.display());
    let file = Kubeconfig::read_from(path).doing(what)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.doing(what)?;
    kube::Client::try_from(config).doing(what)
}

/// The kubeconfig that the command line means.
pub fn kubeconfig_path(server: &cli::Server) -> Option<PathBuf> {
    let from_env = || std::env::var_os("KUBECONFIG").map(PathBuf::from).filter(|p| p.is_file());
    let data_dir = || std::env::var_os("HOLDFAST_DATA_DIR").map_or_else(|| PathBuf::from(cli::DATA_DIR), PathBuf::from);
    let ours = || Some(base::Layout::new(data_dir()).admin_kubeconfig()).filter(|p| p.is_file());
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".kube/config")).filter(|p| p.is_file());
    server.kubeconfig.clone().or_else(from_env).or_else(ours).or_else(home)
}

/// Reads all documents of a YAML or JSON file; `-` is standard input.
pub fn read_manifests(path: &Path) -> Result<Vec<Value>, Error> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).doing(|| "read standard input".into())?
    } else {
        std::fs::read_to_string(path).doing(|| format!("read {}", path.display()))?
    };
    manifests(&text).map_err(|error| While::from_parse(path, error).into())
}

/// All objects in a text of YAML documents; `List` objects are unpacked, empty documents skipped.
pub fn manifests(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().flat_map(unpack).collect())
}

fn unpack(document: Value) -> Vec<Value> {
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut fields) if fields.get("kind").is_some_and(|k| k == "List") => {
            let Some(Value::Array(items)) = fields.remove("items") else { return Vec::new() };
            items.into_iter().flat_map(unpack).collect()
        }
        object => vec![object],
    }
}

impl While {
    fn from_parse(path: &Path, error: serde_saphyr::Error) -> Self {
        Err::<(), _>(error).doing(|| format!("{} is not YAML", path.display())).expect_err("made from an error")
    }
}

#[test]
fn unpacks_lists_and_skips_empty_documents() {
    let found = manifests("---\nkind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n").unwrap();
    let kinds: Vec<_> = found.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["A", "B", "C"]);
}
