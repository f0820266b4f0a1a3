//! What users, administrators, provisioners and nodes do while the controllers work.
use super::*;

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";
const CLASSES: [&str; 7] = ["", "k", "k", "k", "late", "late", "csi"];
const MODES: [&[&str]; 4] =
    [&["ReadWriteOnce"], &["ReadWriteOnce"], &["ReadWriteOnce", "ReadWriteMany"], &["ReadWriteOncePod"]];

impl Sim {
    fn named(&mut self, kind: &'static str, letter: &str, most: usize) -> Key {
        let namespace = if matches!(kind, CLAIM | "Pod") { "ns" } else { "" };
        Key::new(kind, namespace, &format!("{letter}{}", self.rng.below(most)))
    }

    /// One thing that somebody does; nothing where it makes no sense.
    pub(super) fn interfere(&mut self) {
        let claim = self.named(CLAIM, "c", 4);
        let volume = self.named(VOLUME, "v", 5);
        let what = self.rng.below(20);
        self.say(|| format!("somebody does {what} with {claim}, {volume}"));
        match what {
            0..5 if self.api.get(&claim).is_null() => self.make_claim(&claim),
            0..5 if self.rng.one_in(3) => self.api.delete(&claim, None),
            5..10 if self.api.get(&volume).is_null() => self.make_volume(&volume),
            5..8 if self.rng.one_in(2) => self.api.delete(&volume, None),
            10 => self.name_volume(&claim, &volume),
            11 | 12 => self.patch_volume(&volume),
            13 => self.change_class(),
            14..17 => self.change_pod(&claim),
            17 => {
                let node_key = self.named("Node", "n", 2);
                match self.api.get(&node_key).is_null() {
                    true => drop(self.api.make(node(&node_key.name, json!({})))),
                    false if self.rng.one_in(2) => self.api.delete(&node_key, None),
                    false => {}
                }
            }
            18 | 19 => self.provision(&claim),
            _ => {}
        }
    }

    fn choose_class(&mut self, spec: &mut Value) {
        let class = self.rng.pick(&CLASSES);
        spec["spec"]["storageClassName"] = json!(class);
        if self.rng.one_in(8) {
            spec["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"] = json!(class);
            spec["spec"]["storageClassName"] = Value::Null;
        }
        spec["spec"]["accessModes"] = json!(self.rng.pick(&MODES));
        if self.rng.one_in(10) {
            spec["spec"]["volumeMode"] = json!("Block");
        }
        if self.rng.one_in(10) {
            spec["spec"]["volumeAttributesClassName"] = json!("gold");
        }
    }

    fn make_claim(&mut self, key: &Key) {
        let mut more = json!({});
        self.choose_class(&mut more);
        if self.rng.one_in(6) {
            more["spec"]["storageClassName"] = Value::Null;
        }
        if self.rng.one_in(6) {
            more["spec"]["selector"] = json!({ "matchLabels": { "tier": "a" } });
        }
        if self.rng.one_in(8) {
            more["spec"]["volumeName"] = json!(format!("v{}", self.rng.below(5)));
        }
        let size = format!("{}Gi", 1 + self.rng.below(4));
        self.api.make(pvc(&key.name, &size, more));
    }

    fn make_volume(&mut self, key: &Key) {
        let mut more = json!({ "metadata": { "labels": { "tier": self.rng.pick(&["a", "b"]) } } });
        self.choose_class(&mut more);
        if self.rng.one_in(4) {
            json_patch::merge(&mut more, &on_host(self.rng.pick(&["n0", "n1", rules::NOWHERE])));
        }
        if self.rng.one_in(6) {
            let name = format!("c{}", self.rng.below(4));
            let uid = self.api.get(&Key::new(CLAIM, "ns", &name))["metadata"]["uid"].clone();
            more["spec"]["claimRef"] = json!({ "namespace": "ns", "name": name });
            if self.rng.one_in(3) && !uid.is_null() {
                more["spec"]["claimRef"]["uid"] = uid;
            }
        }
        more["spec"]["persistentVolumeReclaimPolicy"] = json!(self.rng.pick(&["Retain", "Retain", "Delete"]));
        let size = format!("{}Gi", 1 + self.rng.below(4));
        self.api.make(pv(&key.name, &size, more));
    }

    /// A claim may be pointed at a volume as long as it points nowhere.
    fn name_volume(&mut self, claim: &Key, volume: &Key) {
        let object = self.api.get(claim);
        if !object.is_null() && object["spec"]["volumeName"].is_null() {
            self.api.edit(claim, json!({ "spec": { "volumeName": &*volume.name } }));
        }
    }

    fn patch_volume(&mut self, key: &Key) {
        let object = self.api.get(key).clone();
        if object.is_null() {
            return;
        }
        let free = object["spec"]["claimRef"].is_null();
        let released = self.api.phase(key) == "Released";
        match self.rng.below(6) {
            0 => self.api.edit(key, json!({ "spec": { "persistentVolumeReclaimPolicy": "Delete" } })),
            1 => self.api.edit(key, json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } })),
            2 if free => {
                let tier = self.rng.pick(&["a", "b"]);
                self.api.edit(key, json!({ "metadata": { "labels": { "tier": tier } } }));
            }
            3 if free => {
                let class = self.rng.pick(&CLASSES);
                let legacy = "volume.beta.kubernetes.io/storage-class";
                self.api.edit(
                    key,
                    json!({ "spec": { "storageClassName": class }, "metadata": { "annotations": { legacy: null } } }),
                );
            }
            4 | 5 if released => self.api.edit(key, json!({ "spec": { "claimRef": null } })),
            5 if !free && self.rng.one_in(3) => {
                self.meddled.insert(key.name.to_string());
                self.api.edit(key, json!({ "spec": { "claimRef": null } }));
            }
            _ => {}
        }
    }

    fn change_class(&mut self) {
        let name = self.rng.pick(&["k", "late", "csi"]);
        let key = Key::new("StorageClass", "", name);
        let default = "storageclass.kubernetes.io/is-default-class";
        match self.api.get(&key).is_null() {
            true => {
                let provisioner = if name == "csi" { "csi.example.com" } else { "kubernetes.io/no-provisioner" };
                self.api.make(class(name, provisioner, name == "late"));
            }
            false if self.rng.one_in(3) => self.api.delete(&key, None),
            false => {
                let value = self.rng.pick(&["true", "false"]);
                self.api.edit(&key, json!({ "metadata": { "annotations": { default: value } } }));
            }
        }
    }

    fn change_pod(&mut self, claim: &Key) {
        let key = self.named("Pod", "p", 3);
        let there = self.api.get(&key).clone();
        if there.is_null() {
            let mut more = claiming(&claim.name);
            if self.rng.one_in(5) {
                more["spec"]["nodeName"] = json!("n0");
            }
            self.api.make(pod(&key.name, more));
        } else if self.rng.one_in(2) {
            self.api.delete(&key, None);
        } else if !there["spec"]["nodeName"].is_null() {
            self.api.edit(&key, json!({ "status": { "phase": "Succeeded" } }));
        }
    }

    /// An external provisioner: makes a volume where it is asked to, deletes what is released.
    fn provision(&mut self, claim: &Key) {
        let object = self.api.get(claim).clone();
        let volume = Key::new(VOLUME, "", &format!("made-{}", self.rng.below(2)));
        let there = self.api.get(&volume);
        let asked = &object["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"];
        if there.is_null() && asked == "csi.example.com" {
            let mut made = json!({
                "metadata": { "annotations": { "pv.kubernetes.io/provisioned-by": "csi.example.com" } },
                "spec": {
                    "hostPath": null, "csi": { "driver": "csi.example.com", "volumeHandle": "h" },
                    "persistentVolumeReclaimPolicy": "Delete",
                    "claimRef": { "namespace": "ns", "name": &*claim.name, "uid": object["metadata"]["uid"] },
                },
            });
            for field in ["storageClassName", "accessModes", "volumeMode", "volumeAttributesClassName"] {
                made["spec"][field] = object["spec"][field].clone();
            }
            made["spec"]["storageClassName"] = json!(rules::class_of(&object));
            self.api.make(pv(&volume.name, object["spec"]["resources"]["requests"]["storage"].as_str().unwrap(), made));
        } else if self.api.phase(&volume) == "Released" && there["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
            self.api.delete(&volume, None);
        }
    }
}
