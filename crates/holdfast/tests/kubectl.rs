//! What people type, in several kubectl versions, and what each must print.
mod common;

use common::{Instance, kubectl, kubectls, run_with, text, until};

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

/// Two ConfigMaps of one set, and things that the rows below change.
const SET: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: "@"}}
data: {colour: blue}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {set: "@"}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: "class-@"}
provisioner: kubernetes.io/no-provisioner
---
apiVersion: v1
kind: Secret
metadata: {name: fixed}
immutable: true
data: {a: YQ==}
"#;
const ONE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {set: '@'}}\ndata: {colour: blue}";
const RED: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {set: '@'}}\ndata: {colour: red}";
const TYPO: &str = "apiVersion: v1\nkind: Podd\nmetadata: {name: p}";
const UNKNOWN: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {}";
const NUMBER: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {port: 80}";
const UNMOUNTED: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}";
const OLD_LABEL: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeSelector: {beta.kubernetes.io/os: linux}, containers: [{name: c, image: i}]}";
const LOCAL: &str = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: v}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], local: {path: /x}}";
const CLAIM: &str = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {accessModes: [RWO]}";

/// What is typed, what is on standard input, the exit status, and what must be printed. `@` is the version's namespace.
/// The rows go on from one another.
const ROWS: &[(&str, &str, i32, &[&str])] = &[
    ("apply -f -", SET, 0, &["configmap/one created", "storageclass.storage.k8s.io/class-@ created"]),
    ("diff -f -", ONE, 0, &[]),
    ("diff -f -", RED, 1, &["-  colour: blue", "+  colour: red"]),
    ("apply -f - --dry-run=server", RED, 0, &["configmap/one configured (server dry run)"]),
    ("get cm -l set=@ -o custom-columns=N:.metadata.name,C:.data.colour --no-headers", "", 0, &["one", "blue", "two"]),
    ("apply --prune -l set=@ -f -", ONE, 0, &["configmap/one unchanged", "configmap/two pruned"]),
    ("apply -f -", TYPO, 1, &["no matches for kind \"Podd\" in version \"v1\"", "ensure CRDs are installed first"]),
    ("create -f - --validate=strict", UNKNOWN, 1, &["strict decoding error: unknown field \"datum\""]),
    ("create -f - --validate=warn --dry-run=server", UNKNOWN, 0, &["Warning: unknown field \"datum\"", "x created"]),
    ("create -f -", NUMBER, 1, &["cannot unmarshal number into Go struct field ConfigMap.data of type string"]),
    ("create -f -", UNMOUNTED, 1, &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]),
    ("create -f - --dry-run=server", OLD_LABEL, 0, &["Warning: spec.nodeSelector[beta.kubernetes.io/os]: deprecated"]),
    ("create -f -", LOCAL, 1, &["spec.nodeAffinity: Required value: Local volume requires node affinity"]),
    ("create -f -", CLAIM, 1, &["spec.accessModes: Unsupported value: \"RWO\"", "spec.resources[storage]: Required"]),
    ("patch secret fixed -p {\"data\":{\"a\":\"Yg==\"}}", "", 1, &["field is immutable when `immutable` is set"]),
    ("patch sc class-@ -p {\"provisioner\":\"a.b\"}", "", 1, &["provisioner", "field is immutable"]),
    ("patch cm one -p {\"data\":{\"colour\":1}}", "", 1, &["map[data:map[colour:1]]", "cannot unmarshal number"]),
    (
        "patch cm one --type=json -p [{\"op\":\"test\",\"path\":\"/data/colour\",\"value\":\"x\"}]",
        "",
        1,
        &["request is invalid"],
    ),
    ("label cm one a=b --resource-version=1", "", 1, &["the object has been modified"]),
    ("edit cm one", "", 0, &["configmap/one edited"]),
    ("get cm one -o jsonpath={.data.colour}", "", 0, &["pink"]),
    (
        "get pods --as=bob",
        "",
        1,
        &["User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"@\""],
    ),
    ("get cm none", "", 1, &["configmaps \"none\" not found"]),
    ("get cm --field-selector data.x=1", "", 1, &["\"data.x\" is not a known field selector"]),
    ("delete ns kube-system", "", 1, &["this namespace may not be deleted"]),
    ("wait --for=delete cm/none --timeout=5s", "", 0, &[]),
    ("explain pod.spec.volumes.emptyDir", "", 0, &["sizeLimit"]),
    ("delete secret,cm --all", "", 0, &["\"fixed\" deleted", "\"one\" deleted"]),
];

/// What people type and mistype: kubectl prints what it prints with other servers. The oldest version, the API's own and
/// the newest stand for all.
#[test]
fn what_people_mistype_is_told_in_known_words() {
    let instance = Instance::empty(&["--no-node"]);
    let editor = instance.dir.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nexec sed -i 's/colour: blue/colour: pink/' \"$1\"\n")
        .expect("write the editor");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&editor, mode).expect("make the editor a program");
    let (instance, editor) = (&instance, &editor);
    std::thread::scope(|threads| {
        let all = kubectls();
        let chosen = [all.first(), all.last()].into_iter().flatten().cloned().chain([kubectl()]);
        for (index, program) in chosen.enumerate() {
            threads.spawn(move || {
                let namespace = format!("rows-{index}");
                instance.kubectl(&["create", "namespace", &namespace]);
                for (typed, input, code, says) in ROWS {
                    let typed = typed.replace('@', &namespace);
                    let args: Vec<&str> = ["-n", &namespace].into_iter().chain(typed.split(' ')).collect();
                    let mut command = instance.kubectl_command(&program, &args);
                    command.env("EDITOR", editor);
                    let output = run_with(command, &input.replace('@', &namespace));
                    let all = text(&output.stdout) + &text(&output.stderr);
                    let what = format!("{} {typed}", program.display());
                    assert_eq!(output.status.code(), Some(*code), "{what}: {all}");
                    for part in *says {
                        let part = part.replace('@', &namespace);
                        assert!(all.contains(&part), "{what}: wanted {part:?} in {all}");
                    }
                }
            });
        }
    });
}

/// Our own verbs: the same words, and manners of a well-behaved program.
#[test]
fn own_verbs_tell_in_one_sentence() {
    let instance = Instance::empty(&["--no-node"]);
    let file = instance.dir.path().join("one.yaml").to_string_lossy().into_owned();
    std::fs::write(&file, ONE.replace('@', "own")).expect("write the manifest");
    let kubeconfig = instance.kubeconfig();
    let run = |typed: &str| {
        let args: Vec<&str> = typed.split(' ').chain(["--kubeconfig", &kubeconfig]).collect();
        instance.ours(&args)
    };
    #[track_caller]
    fn check(output: &std::process::Output, code: i32, says: &str) {
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{all}");
        assert!(all.contains(says), "wanted {says:?} in {all}");
        assert!(code == 0 || all.lines().count() == 1, "more than a sentence: {all}");
    }
    check(&run(&format!("apply -f {file}")), 0, "configmap/one created");
    check(&run(&format!("apply -f {file}")), 0, "configmap/one unchanged");
    assert!(instance.kubectl(&["apply", "-f", &file]).contains("configmap/one unchanged"), "kubectl goes on from ours");
    check(&run("get cm one -o name"), 0, "configmap/one");
    check(&run("get pods -n nowhere"), 0, "No resources found in nowhere namespace.");
    check(&run("get all"), 0, "No resources found");
    check(&run("logs none"), 1, "holdfast: pods \"none\" not found");
    check(&run("port-forward none 80"), 1, "holdfast: pods \"none\" not found");
    check(&run("get cm none"), 1, "holdfast: configmaps \"none\" not found");
    check(&run("get nothing"), 1, "the server doesn't have a resource type \"nothing\"");
    check(&run("delete"), 2, "nothing to delete");
    let both = run("get cm one none");
    assert!(text(&both.stdout).contains("one") && text(&both.stderr).contains("not found"), "what is there is shown");
    assert_eq!(both.status.code(), Some(1));
    let mut unread = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["get", "cm", "-A", "-o", "yaml", "--kubeconfig", &kubeconfig])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("start holdfast get");
    drop(unread.stdout.take());
    let ended = unread.wait_with_output().expect("wait for holdfast get");
    assert_eq!((ended.status.code(), text(&ended.stderr).as_str()), (Some(0), ""), "a reader that is gone is no panic");
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
