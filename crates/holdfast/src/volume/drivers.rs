//! Where objects and drivers are: a connection to the API, and to the drivers whose sockets are on this machine.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base::Layout;
use csi::{ControllerClient, GetPluginInfoRequest, IdentityClient, NodeClient, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;

use driver::{
    admin::{AdminClient, Kept, ListRequest},
    stand_in::FACES,
};

use crate::{
    cli::{self, volume::VolumePlace},
    client::{Error, Session, is_not_found},
    csi_driver::socket,
    errors::said,
    up::kubelet_dir,
};

const TIME_FOR_A_CALL: Duration = Duration::from_secs(120);
/// Archives take as long as they take.
const TIME_FOR_AN_ARCHIVE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the commands work on.
pub struct Place {
    pub session: Session,
    sockets: Sockets,
}

enum Sockets {
    One(PathBuf),
    Of(Layout),
}

/// A driver of this machine.
pub struct Local {
    pub name: String,
    pub admin: AdminClient,
    pub archives: AdminClient,
    pub controller: ControllerClient,
    pub node: NodeClient,
}

impl Local {
    async fn at(path: &Path) -> Result<Self, Status> {
        let driver = csi::Driver::at(path, TIME_FOR_A_CALL);
        let name = IdentityClient::new(&driver).get_plugin_info(GetPluginInfoRequest {}).await?.name;
        Ok(Self {
            name,
            admin: AdminClient::new(&driver),
            archives: AdminClient::new(&csi::Driver::at(path, TIME_FOR_AN_ARCHIVE)),
            controller: ControllerClient::new(&driver),
            node: NodeClient::new(&driver),
        })
    }

    /// All volumes, deleted ones too.
    pub async fn volumes(&self) -> Result<Vec<Kept>, Error> {
        Ok(self.admin.list(ListRequest {}).await.map_err(|s| self.refused(&s))?.volumes)
    }

    /// The driver's own sentence.
    pub fn refused(&self, status: &Status) -> Error {
        match status.code() {
            csi::Code::Unimplemented => {
                let why = "it does not keep deleted volumes, and writes no archives";
                format!("{} is no driver of holdfast: {why}; choose another --endpoint", self.name).into()
            }
            csi::Code::Unavailable => format!("{} has ended: {}", self.name, status.message()).into(),
            _ => format!("{}: {}", self.name, status.message()).into(),
        }
    }
}

impl Place {
    pub async fn open(args: &VolumePlace) -> Result<Self, Error> {
        let own = args.data_dir.as_ref().map(|dir| Layout::new(dir).admin_kubeconfig()).filter(|f| f.is_file());
        let server = cli::Server {
            kubeconfig: args.server.kubeconfig.clone().or(own),
            namespace: args.server.namespace.clone(),
        };
        let sockets = match (&args.endpoint, &args.data_dir) {
            (Some(endpoint), _) => Sockets::One(socket(endpoint)?),
            (None, Some(dir)) => Sockets::Of(kubelet_dir::find(Layout::new(absolute(dir)?))?),
            (None, None) => Sockets::Of(beside(&server)?),
        };
        Ok(Self { session: Session::open(&server).await?, sockets })
    }

    /// All objects at a path.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        let mut all = self.session.get(path).await?;
        Ok(serde_json::from_value(all["items"].take())?)
    }

    /// The object at a path; `None` where there is none.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        match self.session.get(path).await {
            Ok(object) => Ok(Some(serde_json::from_value(object)?)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        let body = ("application/json", serde_json::to_vec(object)?);
        self.session.send("POST", path, "application/json", Some(body)).await
    }

    /// The drivers of this machine that answer, and what kept others from it.
    pub async fn locals(&self) -> (Vec<Local>, Vec<String>) {
        let paths: Vec<PathBuf> = match &self.sockets {
            Sockets::One(path) => vec![path.clone()],
            Sockets::Of(layout) => {
                let names = std::iter::once(driver::NAME).chain(FACES.iter().map(|f| f.driver));
                let all = names.map(|name| layout.driver_socket(name));
                // Stand-ins are there if they were asked for.
                all.enumerate().filter(|(i, path)| *i == 0 || path.exists()).map(|(_, path)| path).collect()
            }
        };
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for path in paths {
            match Local::at(&path).await {
                Ok(local) => found.push(local),
                Err(status) => silent.push(format!("{}: {}", path.display(), status.message())),
            }
        }
        (found, silent)
    }

    /// The drivers of this machine.
    ///
    /// # Errors
    /// There is none.
    pub async fn drivers(&self) -> Result<Vec<Local>, Error> {
        let (found, silent) = self.locals().await;
        if found.is_empty() {
            return said(format!(
                "no driver of holdfast answers here ({}); run this as root on the machine of the volumes, with the \
                 --data-dir of `holdfast up` or the --endpoint of `holdfast csi`",
                silent.join("; ")
            ));
        }
        Ok(found)
    }

    /// The driver of local volumes.
    ///
    /// # Errors
    /// It does not answer here.
    pub async fn local(&self) -> Result<Local, Error> {
        let found = self.drivers().await?.into_iter().find(|d| d.name == driver::NAME);
        match found {
            Some(local) => Ok(local),
            None => said(format!("driver {} does not answer here; see --data-dir and --endpoint", driver::NAME)),
        }
    }
}

fn absolute(dir: &Path) -> Result<PathBuf, Error> {
    Ok(std::path::absolute(dir)?)
}

/// The data directory in which the kubeconfig is, if it is in one.
fn beside(server: &cli::Server) -> Result<Layout, Error> {
    let usual = || Layout::new(cli::DATA_DIR);
    let beside = crate::client::kubeconfig_path(server).and_then(|f| Some(Layout::new(absolute(f.parent()?).ok()?)));
    let used = beside.map(kubelet_dir::find).transpose()?.filter(|l| l.driver_socket(driver::NAME).exists());
    match used {
        Some(layout) => Ok(layout),
        None => kubelet_dir::find(usual()),
    }
}
