//! What users, administrators, provisioners and nodes do while the controllers work.
use super::*;

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";
const CLASSES: [&str; 8] = ["", "k", "k", "k", "late", "late", "csi", "latecsi"];
const MODES: [&[&str]; 4] =
    [&["ReadWriteOnce"], &["ReadWriteOnce"], &["ReadWriteOnce", "ReadWriteMany"], &["ReadWriteOncePod"]];

impl Sim {
    fn named(&mut self, kind: &'static str, letter: &str, most: usize) -> Key {
        let namespace = if matches!(kind, CLAIM | "Pod") { "ns" } else { "" };
        Key::new(kind, namespace, &format!("{letter}{}", self.rng.below(most)))
    }

    /// One thing that somebody does; nothing where it makes no sense.
    pub(super) fn interfere(&mut self) {
        let mut claim = self.named(CLAIM, "c", 4);
        if self.rng.one_in(12) {
            // The claim that is made for a pod, or somebody else's that is in its way.
            claim = Key::new(CLAIM, "ns", &format!("p{}-v{}", self.rng.below(3), self.rng.below(3)));
        }
        let volume = self.named(VOLUME, "v", 5);
        let what = self.rng.below(22);
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
            17 => self.change_node(),
            18 | 19 => self.provision(),
            20 if self.rng.one_in(4) => self.change_quota(),
            // Somebody sets the clock.
            21 => self.api.now += jiff::SignedDuration::from_secs(self.rng.pick(&[-3600, -1, 1, 90_000])),
            _ => {}
        }
    }

    /// A node comes, goes, is closed to pods, or goes and comes back as another one of that name.
    fn change_node(&mut self) {
        let key = self.named("Node", "n", 2);
        let there = !self.api.get(&key).is_null();
        match self.rng.below(4) {
            0 if there => self.api.delete(&key, None),
            1 if there => {
                self.api.delete(&key, None);
                self.api.make(node(&key.name, json!({})));
            }
            2 if there => {
                let closed = self.rng.one_in(2);
                self.api.edit(&key, json!({ "spec": { "unschedulable": closed } }));
            }
            _ if !there => drop(self.api.make(node(&key.name, json!({})))),
            _ => {}
        }
    }

    pub(super) fn change_quota(&mut self) {
        let key = Key::new("ResourceQuota", "ns", "q");
        let hard = json!({
            "persistentvolumeclaims": self.rng.below(9).to_string(), "requests.storage": "9Gi",
            "k.storageclass.storage.k8s.io/requests.storage": "5Gi", "count/pods": "3",
        });
        if self.api.get(&key).is_null() {
            self.api.make(json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q" }, "spec": { "hard": hard },
            }));
        } else if self.rng.one_in(3) {
            self.api.delete(&key, None);
        } else {
            self.api.edit(&key, json!({ "spec": { "hard": hard } }));
        }
    }

    pub(super) fn make_default(&mut self, name: &str, default: bool) {
        let annotation = "storageclass.kubernetes.io/is-default-class";
        if default {
            self.defaults.insert(name.to_owned());
        }
        let key = Key::new("StorageClass", "", name);
        self.api.edit(&key, json!({ "metadata": { "annotations": { annotation: default.to_string() } } }));
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
        match self.api.get(&key).is_null() {
            true => {
                let provisioner = if name == "csi" { "csi.example.com" } else { "kubernetes.io/no-provisioner" };
                self.api.make(class(name, provisioner, name == "late"));
            }
            false if self.rng.one_in(3) => self.api.delete(&key, None),
            false => {
                let default = self.rng.one_in(2);
                self.make_default(name, default);
            }
        }
    }

    fn change_pod(&mut self, claim: &Key) {
        let key = self.named("Pod", "p", 3);
        let there = self.api.get(&key).clone();
        if there.is_null() {
            let mut more = json!({ "spec": { "volumes": [] } });
            let wanted = 1 + self.rng.below(3).min(self.rng.below(3));
            for i in 0..wanted {
                let volume = match (i, self.rng.one_in(4)) {
                    (_, true) => self.ephemeral(),
                    (0, _) => json!({ "persistentVolumeClaim": { "claimName": &*claim.name } }),
                    _ => json!({ "persistentVolumeClaim": { "claimName": &*self.named(CLAIM, "c", 4).name } }),
                };
                more["spec"]["volumes"].as_array_mut().unwrap().push(volume);
                more["spec"]["volumes"][i]["name"] = json!(format!("v{i}"));
            }
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

    fn ephemeral(&mut self) -> Value {
        let mut template = json!({});
        self.choose_class(&mut template);
        let size = format!("{}Gi", 1 + self.rng.below(3));
        let whole = pvc("template", &size, template);
        json!({ "ephemeral": { "volumeClaimTemplate": {
            "metadata": { "annotations": whole["metadata"]["annotations"] }, "spec": whole["spec"],
        } } })
    }

    /// An external provisioner: makes a volume where it is asked to, or asks for another node; deletes what is released.
    fn provision(&mut self) {
        let asks = |v: &Value| {
            v["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == "csi.example.com"
                && v["spec"]["volumeName"].is_null()
        };
        let asked: Vec<Key> =
            self.api.objects.iter().filter(|(k, v)| k.kind == CLAIM && asks(v)).map(|(k, _)| k.clone()).collect();
        let claim = match asked.len() {
            0 => Key::new(CLAIM, "ns", "nobody's"),
            n => asked[self.rng.below(n)].clone(),
        };
        let claim = &claim;
        let object = self.api.get(claim).clone();
        let node = object["metadata"]["annotations"][rules::SELECTED].clone();
        if !node.is_null() && self.rng.one_in(4) {
            self.api.edit(claim, json!({ "metadata": { "annotations": { rules::SELECTED: null } } }));
            return;
        }
        let volume = Key::new(VOLUME, "", &format!("made-{}", self.rng.below(2)));
        let there = self.api.get(&volume);
        if there.is_null() && !object.is_null() {
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
            if let Some(node) = node.as_str() {
                json_patch::merge(&mut made, &on_host(node));
            }
            self.api.make(pv(&volume.name, object["spec"]["resources"]["requests"]["storage"].as_str().unwrap(), made));
        } else if self.api.phase(&volume) == "Released" && there["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
            self.api.delete(&volume, None);
        }
    }
}
