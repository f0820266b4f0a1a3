//! Servers and clients over a real unix socket.
use std::{path::Path, sync::Arc, time::Duration};

use csi::{registration::*, *};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::service::Routes;

struct Half;

#[async_trait::async_trait]
impl Identity for Half {
    async fn get_plugin_info(&self, _: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        Ok(GetPluginInfoResponse { name: "half.csi.test".into(), vendor_version: "7".into(), ..Default::default() })
    }
    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, Status> {
        std::future::pending().await
    }
}

#[async_trait::async_trait]
impl Controller for Half {
    async fn create_volume(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        if request.name.is_empty() {
            return Err(Status::invalid_argument("a volume needs a name"));
        }
        let capacity_bytes = request.capacity_range.map_or(0, |r| r.required_bytes);
        let volume = Volume {
            volume_id: request.name,
            volume_context: request.parameters,
            capacity_bytes,
            ..Default::default()
        };
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }
}

#[async_trait::async_trait]
impl Registration for Half {
    async fn get_info(&self, _: InfoRequest) -> Result<PluginInfo, Status> {
        Ok(PluginInfo { r#type: CSI_PLUGIN.into(), name: "half.csi.test".into(), ..Default::default() })
    }
}

fn start(path: &Path) -> (oneshot::Sender<()>, JoinHandle<Result<(), SocketError>>) {
    let half = Arc::new(Half);
    let mut routes = Routes::builder();
    routes.add_service(IdentityServer(half.clone()));
    routes.add_service(ControllerServer(half.clone()));
    routes.add_service(RegistrationServer(half));
    let listener = Listener::bind(path).expect("a free socket");
    let (stop, stopped) = oneshot::channel::<()>();
    (stop, tokio::spawn(listener.serve(routes, async { drop(stopped.await) })))
}

#[tokio::test]
async fn calls_answers_and_errors() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("csi.sock");
    let driver = Driver::at(&path, Duration::from_millis(300));
    let identity = IdentityClient::new(&driver);
    let nobody = identity.get_plugin_info(GetPluginInfoRequest {}).await.expect_err("nobody listens");
    assert_eq!(nobody.code(), Code::Unavailable, "{nobody}");

    let (stop, server) = start(&path);
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("served");
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("half.csi.test", "7"));
    let hangs = identity.probe(ProbeRequest {}).await.expect_err("never answers");
    assert_eq!((hangs.code(), hangs.message()), (Code::DeadlineExceeded, "context deadline exceeded"));

    let controller = ControllerClient::new(&driver);
    let request = CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: Some(CapacityRange { required_bytes: 5 << 30, limit_bytes: 0 }),
        parameters: [("backend".to_owned(), "image".to_owned())].into(),
        ..Default::default()
    };
    let volume = controller.create_volume(request.clone()).await.expect("made").volume.expect("a volume");
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", 5 << 30));
    assert_eq!(volume.volume_context, request.parameters);
    let refused = controller.create_volume(CreateVolumeRequest::default()).await.expect_err("no name");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "a volume needs a name"));
    let left_out = controller.list_volumes(ListVolumesRequest::default()).await.expect_err("left out");
    assert_eq!(left_out.code(), Code::Unimplemented);
    let no_service = NodeClient::new(&driver).node_get_info(NodeGetInfoRequest {}).await.expect_err("no node service");
    assert_eq!(no_service.code(), Code::Unimplemented);
    let plugin = RegistrationClient::new(&driver).get_info(InfoRequest {}).await.expect("registered");
    assert_eq!(plugin.r#type, "CSIPlugin");

    let taken = Listener::bind(&path).err().expect("in use");
    assert!(matches!(taken, SocketError::Taken(_)), "{taken}");
    stop.send(()).expect("still serving");
    server.await.expect("no panic").expect("ended well");
    assert!(!path.exists(), "the socket goes with the server");

    // A driver that comes back is reached by the same client.
    let (_stop, _server) = start(&path);
    identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("served again");
}

#[tokio::test]
async fn sockets_that_are_in_the_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").expect("written");
    assert!(matches!(Listener::bind(&file), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
    assert!(matches!(Listener::bind(&dir.path().join("no/such/dir.sock")), Err(SocketError::Listen { .. })));
    // Left by a process that was killed: nobody answers.
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    Listener::bind(&stale).expect("replaced");
}

#[test]
fn secrets_are_not_printed() {
    let secrets = || [("password".to_owned(), "hunter2".to_owned())].into();
    let create = CreateVolumeRequest { name: "pvc-1".into(), secrets: secrets(), ..Default::default() };
    let stage = NodeStageVolumeRequest { volume_id: "v".into(), secrets: secrets(), ..Default::default() };
    let printed =
        format!("{create:?} {stage:?} {:?}", NodeExpandVolumeRequest { secrets: secrets(), ..Default::default() });
    assert!(!printed.contains("hunter2") && printed.contains("pvc-1"), "{printed}");
}
