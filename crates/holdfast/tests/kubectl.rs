//! What people type, in several kubectl versions, and what each must print.
mod common;

use common::{Instance, kubectls, text, until};

const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: web}}
data: {colour: blue}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: manual, hostPath: {path: /nowhere/disk}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: manual, resources: {requests: {storage: 1Gi}}}
"#;

/// Every verb on every kubectl version; one instance, a namespace per version.
#[test]
fn every_version_applies_gets_describes_edits_and_deletes() {
    let instance = Instance::empty(&["--no-node"]);
    for (index, program) in kubectls().into_iter().enumerate() {
        let namespace = format!("v{index}");
        let run = |args: &[&str], input: &str| {
            let mut command = instance.kubectl_command(&program, &["-n", &namespace]);
            let file = instance.dir.path().join(format!("input-{index}.yaml"));
            std::fs::write(&file, input).expect("write the input");
            let output =
                command.args(args).stdin(std::fs::File::open(&file).expect("open")).output().expect("run kubectl");
            let all = text(&output.stdout) + &text(&output.stderr);
            assert!(output.status.success(), "{} {args:?}: {all}", program.display());
            all
        };
        let objects = OBJECTS.replace("disk", &format!("disk{index}")).replace("manual", &format!("manual{index}"));
        run(&["create", "namespace", &namespace], "");
        assert!(run(&["apply", "-f", "-"], &objects).contains("configmap/settings created"));
        assert!(run(&["apply", "-f", "-"], &objects).contains("configmap/settings unchanged"));
        let changed = objects.replace("blue", "green");
        assert!(run(&["apply", "-f", "-"], &changed).contains("configmap/settings configured"));
        until("the claim is bound", || run(&["get", "pvc", "data"], "").contains("Bound").then_some(()));
        assert_eq!(run(&["get", "cm", "settings", "-o", "jsonpath={.data.colour}"], ""), "green");
        assert!(run(&["get", "cm", "-l", "app=web", "-o", "name"], "").contains("configmap/settings"));
        assert!(run(&["get", "pv", "-o", "wide"], "").contains("VOLUMEMODE"));
        assert!(run(&["describe", "pvc", "data"], "").contains(&format!("disk{index}")));
        run(&["label", "cm", "settings", "tier=one"], "");
        run(&["annotate", "cm", "settings", "note=two"], "");
        run(&["patch", "cm", "settings", "-p", r#"{"data":{"size":"9"}}"#], "");
        run(&["patch", "cm", "settings", "--type=json", "-p", r#"[{"op":"remove","path":"/data/size"}]"#], "");
        assert!(run(&["explain", "pvc.spec.accessModes"], "").contains("accessModes"));
        assert!(run(&["api-resources"], "").contains("persistentvolumeclaims"));
        run(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", "--timeout=30s"], "");
        run(&["delete", "-f", "-"], &objects);
        run(&["delete", "namespace", &namespace], "");
    }
}

/// Bad input: what is wrong, on which object, and nothing half-made.
#[test]
fn refusals_name_the_object_and_the_field() {
    let instance = Instance::empty(&["--no-node"]);
    #[track_caller]
    fn check(instance: &Instance, why: &str, args: &[&str], input: &str, says: &[&str]) {
        let output = instance.kubectl_with(args, input);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success(), "{why}: was accepted: {all}");
        for part in says {
            assert!(all.contains(part), "{why}: wanted {part:?} in {all}");
        }
    }
    let apply = &["apply", "-f", "-"];
    check(&instance, "not YAML", apply, "a: [", &["error"]);
    let unknown = OBJECTS.replace("data: {colour: blue}", "datum: {colour: blue}");
    check(&instance, "unknown field", apply, &unknown, &["unknown field", "datum"]);
    let wrong = OBJECTS.replace(
        "[ReadWriteOnce], storageClassName: manual, resources",
        "[Sometimes], storageClassName: manual, resources",
    );
    check(&instance, "wrong value", apply, &wrong, &["spec.accessModes", "Unsupported value"]);
    let typed =
        OBJECTS.replace("[ReadWriteOnce], storageClassName: manual, hostPath", "3, storageClassName: manual, hostPath");
    check(&instance, "wrong type", apply, &typed, &["accessModes"]);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n";
    check(&instance, "no image", apply, pod, &["spec.containers[0].image", "Required value"]);
    check(&instance, "missing object", &["get", "pod", "none"], "", &["pods \"none\" not found"]);
}

/// Mistakes in starting: one sentence each, exit status 1, nothing left.
#[test]
fn start_errors_are_one_sentence() {
    let instance = Instance::empty(&["--no-node"]);
    let again = instance.ours(&["up", "--no-node", "--listen", "127.0.0.1:0", "--data-dir", &instance.data_dir()]);
    let said = text(&again.stderr);
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert!(said.contains(&instance.data_dir()) && said.lines().count() == 1, "data directory in use: {said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let dir = instance.dir.path().join("other").to_string_lossy().into_owned();
    let busy = instance.ours(&["up", "--no-node", "--listen", &address, "--data-dir", &dir]);
    let said = text(&busy.stderr);
    assert_eq!(busy.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.lines().count() == 1, "port in use: {said}");

    let usage = instance.ours(&["up", "--nonsense"]);
    assert_eq!(usage.status.code(), Some(2));
}

/// Acknowledged objects survive `kill -9`.
#[test]
fn what_was_acknowledged_is_there_after_kill_nine() {
    let mut instance = Instance::empty(&["--no-node"]);
    for round in 0..3 {
        let name = format!("kept-{round}");
        instance.kubectl(&["create", "configmap", &name, "--from-literal=a=b"]);
        instance.end("KILL");
        instance.up();
        for earlier in 0..=round {
            let found = instance.kubectl(&["get", "cm", &format!("kept-{earlier}"), "-o", "jsonpath={.data.a}"]);
            assert_eq!(found, "b");
        }
    }
}
