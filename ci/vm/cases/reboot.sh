#!/bin/bash
# Pods with volumes of several types, at work when the machine loses its power; `after/reboot.sh` looks at what came of it.
. /holdfast/guest/lib.sh
apply <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { greeting: hello }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: kept }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 64Mi } } }
---
apiVersion: v1
kind: Pod
metadata: { name: survivor }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: hfbox:1
    command: [sh, -c, 'echo start >>/kept/starts; sync; sleep 9999']
    volumeMounts:
    - { name: kept, mountPath: /kept }
    - { name: settings, mountPath: /settings }
    - { name: scratch, mountPath: /scratch }
    - { name: memory, mountPath: /memory }
  volumes:
  - { name: kept, persistentVolumeClaim: { claimName: kept } }
  - { name: settings, configMap: { name: settings } }
  - { name: scratch, emptyDir: { sizeLimit: 16Mi } }
  - { name: memory, emptyDir: { medium: Memory } }
---
apiVersion: v1
kind: Pod
metadata: { name: leaving, finalizers: [vm.test/hold] }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: c, image: 'hfbox:1', command: [sleep, '9999'], volumeMounts: [{ name: v, mountPath: /v }] }]
  volumes: [{ name: v, emptyDir: {} }]
---
apiVersion: v1
kind: Pod
metadata: { name: once }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{ name: c, image: 'hfbox:1', command: [sleep, '9999'] }]
YAML
ready pod/survivor pod/leaving pod/once
in_pod survivor 'echo precious >/kept/data; echo scratch >/scratch/data; echo gone >/memory/data; sync; while :; do date >>/kept/busy; done & cat /settings/greeting'
mkdir -p /data/before
k get pod survivor -o jsonpath='{.metadata.uid}' >/data/before/uid
sync
