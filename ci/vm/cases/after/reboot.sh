#!/bin/bash
# The pods of `reboot.sh` in the machine's next life.
. /holdfast/guest/lib.sh
until_true 60 sh -c "kubectl get pod survivor -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type==\"Ready\")].status}' | grep -q '^1 True'"
equal "$(cat /data/before/uid)" "$(k get pod survivor -o jsonpath='{.metadata.uid}')"
in_pod survivor 'cat /kept/data /scratch/data /settings/greeting; wc -l </kept/starts; ls /memory' | tee /run/found
equal 'precious scratch hello2' "$(echo $(cat /run/found))"
k get pods
until_true 30 sh -c "kubectl get pod once -o jsonpath='{.status.phase}' | grep -qx Failed"
until_true 30 sh -c "kubectl get pod leaving -o jsonpath='{.status.phase}' | grep -qx Running"
gone pod/survivor pod/once
k delete pod leaving --wait=false
k patch pod leaving --type=merge -p '{"metadata":{"finalizers":null}}'
k wait --for=delete --timeout=60s pod/leaving
k delete pvc kept
stop TERM
fails grep ' /data/' /proc/self/mountinfo
equal '' "$(losetup -a)"
equal '' "$(find /sys/fs/cgroup -name 'holdfast-*')"
start
