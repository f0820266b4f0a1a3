//! `glusterfs`: whose servers are asked, and a client that dies, or that nobody wants any more.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use k8s_openapi::api::core::v1::{Endpoints, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use serde_json::{Value, from_value, json};
use sys::{FakeSys, FileKind, Program, Ran, Sys, Tmpfs};
use volumes::{
    Cancel, GlusterVolume, Inputs, Next, Ownership, PodVolumes, Resolved, Source, VolumeError, endpoints_of, resolve,
};

/// A machine with a client that mounts, or that waits for its servers for ever.
fn machine(mounts: bool) -> (Arc<FakeSys>, PodVolumes) {
    let sys = Arc::new(FakeSys::default());
    sys.with_file("/usr/sbin/glusterfs", FileKind::File);
    let kernel = Arc::downgrade(&sys);
    sys.with_programs(move |program: &Program<'_>| {
        let sys = kernel.upgrade().unwrap();
        if mounts {
            let at = sys.open(Path::new(program.arguments.last().unwrap()))?;
            sys.mount_tmpfs(&at, &Tmpfs { size_bytes: None, mode: 0o755 })?;
        }
        Ok(Ran::default())
    });
    let volumes = PodVolumes::new("/pods".into(), sys.clone());
    (sys, volumes)
}

fn volume() -> Resolved {
    let source = GlusterVolume {
        servers: vec!["192.0.2.1".into()],
        endpoints: ("ns".into(), "servers".into()),
        path: "vol".into(),
        read_only: false,
        mount_options: Vec::new(),
    };
    Resolved { source: Source::Glusterfs(Box::new(source)), read_only: false, mount_options: Vec::new() }
}

#[test]
fn a_client_that_died_is_replaced() {
    let (sys, volumes) = machine(true);
    let own = Ownership::default();
    let ready = volumes.set_up("p", "v", &volume(), &own).unwrap();
    let (mounts, clients) = (sys.mounts(), sys.attendants());
    assert_eq!((mounts.len(), &mounts[0].path, clients.len()), (1, &ready.host_path, 1));
    volumes.set_up("p", "v", &volume(), &own).unwrap();
    assert_eq!((sys.mounts(), sys.attendants()), (mounts.clone(), clients.clone()), "it serves");
    sys.kill_attendants();
    volumes.set_up("p", "v", &volume(), &own).unwrap();
    assert_eq!((sys.mounts(), sys.attendants()), (mounts, clients));
    volumes.tear_down("p").unwrap();
    assert!(sys.mounts().is_empty() && sys.attendants().is_empty() && sys.tree("/pods").is_empty());
}

#[test]
fn a_client_that_waits_goes_with_its_pod() {
    let (sys, volumes) = machine(false);
    let cancel = Cancel::default();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| volumes.set_up_while("p", "v", &volume(), &Ownership::default(), &cancel));
        while sys.attendants().is_empty() {
            std::thread::yield_now();
        }
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(VolumeError::Cancelled)));
    });
    assert!(sys.attendants().is_empty(), "the client lives on");
    volumes.tear_down("p").unwrap();
    assert!(sys.tree("/pods").is_empty());
    // Without the program, the pod is told what to install.
    let sys = Arc::new(FakeSys::default());
    let error = PodVolumes::new("/pods".into(), sys).set_up("p", "v", &volume(), &Ownership::default()).unwrap_err();
    assert!(error.to_string().contains("install it: glusterfs-client"), "{error}");
}

#[test]
fn servers_are_what_the_endpoints_say() {
    let pod: Pod = from_value(json!({"metadata": {"namespace": "ns"}, "spec": {"containers": []}})).unwrap();
    let own: Volume =
        from_value(json!({"name": "v", "glusterfs": {"endpoints": "e", "path": "vol", "readOnly": true}})).unwrap();
    let found = |namespace: &str, subsets: Value| {
        let object: Endpoints = from_value(json!({ "subsets": subsets })).unwrap();
        Inputs { endpoints: [((namespace.into(), "e".into()), Some(object))].into(), ..Inputs::default() }
    };
    let servers = |resolved: Resolved| match resolved.source {
        Source::Glusterfs(s) => (s.servers, s.read_only, s.mount_options),
        other => panic!("{other:?}"),
    };
    let two = json!([{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]},
        {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.9"}]}]);
    let all = vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
    assert_eq!(servers(resolve(&pod, &own, &found("ns", two.clone())).unwrap()), (all.clone(), true, Vec::new()));
    let none = resolve(&pod, &own, &found("ns", json!([{"notReadyAddresses": [{"ip": "192.0.2.9"}]}]))).unwrap_err();
    assert!(
        none.to_string().contains("no valid ipaddress found in endpoint address list")
            && none.next() == Next::WaitForObject
    );
    let gone = Inputs { endpoints: [(("ns".into(), "e".into()), None)].into(), ..Inputs::default() };
    assert_eq!(resolve(&pod, &own, &gone).unwrap_err().to_string(), "endpoints \"e\" not found in namespace \"ns\"");

    let claim: PersistentVolumeClaim = from_value(json!({"metadata": {"name": "c", "uid": "cu"},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}))
    .unwrap();
    let used: Volume = from_value(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
    for (source, namespace) in [
        (json!({"endpoints": "e", "path": "vol"}), "ns"),
        (json!({"endpoints": "e", "path": "vol", "endpointsNamespace": "other"}), "other"),
    ] {
        let volume: PersistentVolume = from_value(json!({"metadata": {"name": "pv"},
            "spec": {"claimRef": {"uid": "cu"}, "mountOptions": ["acl"], "glusterfs": source}}))
        .unwrap();
        assert_eq!(endpoints_of(&pod, &volume), Some((namespace.to_owned(), "e".to_owned())));
        let mut inputs = found(namespace, two.clone());
        inputs.claims.insert("c".into(), Some(claim.clone()));
        inputs.volumes.insert("pv".into(), Some(volume));
        let want = (all.clone(), false, vec!["acl".to_owned()]);
        assert_eq!(servers(resolve(&pod, &used, &inputs).unwrap()), want, "{namespace}");
    }
}
