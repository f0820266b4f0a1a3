#!/bin/bash
# Limits on a host whose control groups are version 2 only.
. /holdfast/guest/lib.sh
grep -q ' - cgroup2 ' /proc/self/mountinfo
fails grep ' - cgroup cgroup ' /proc/self/mountinfo
apply <<'YAML'
apiVersion: v1
kind: Pod
metadata: { name: limits }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: greedy
    image: hfbox:1
    command: [sh, -c, 'dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 1000']
    resources: { limits: { memory: 40Mi, cpu: 500m }, requests: { cpu: 100m } }
  - name: modest
    image: hfbox:1
    command: [sleep, '1000']
    resources: { limits: { memory: 64Mi, cpu: 250m } }
YAML
status='{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[1].state.running}'
until_true 60 sh -c "kubectl get pod limits -o jsonpath='$status' | grep -q '^OOMKilled {'"
pod=$(find /sys/fs/cgroup -type d -name 'pod*')
equal "$(((40 + 64) << 20))" "$(cat "$pod/memory.max")"
equal '75000 100000' "$(cat "$pod/cpu.max")"
container=$(grep -l . "$pod"/*/cgroup.procs | xargs dirname)
equal "$((64 << 20))" "$(cat "$container/memory.max")"
equal 1 "$(cat "$container/memory.oom.group")"
equal '25000 100000' "$(cat "$container/cpu.max")"
cat "$container/cpu.weight"
# Device nodes that nobody gave are refused, by the program that version 2 asks.
in_container limits modest 'cat /dev/null && mknod /tmp/disk b 254 0 && ! cat /tmp/disk'
k get --raw "/api/v1/nodes/vm/proxy/stats/summary" | tr -d ' \n' | grep -o '"workingSetBytes":[1-9][0-9]*' | head -n 3
gone pod/limits
until_true 10 test ! -e "$pod"
