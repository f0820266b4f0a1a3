#!/bin/bash
# Runs cases one after the other on one instance of holdfast; one line for each.
. /holdfast/guest/lib.sh
trap - ERR
cd /run
failed=0 verbose=$(grep -o hf.verbose /proc/cmdline || true)
holdfast image import /holdfast/hfbox.tar --data-dir "$data" >/run/import.log 2>&1
start || { cat "$data.log"; exit 1; }
seconds=$(sed 's/.*hf.seconds=\([0-9-]*\).*/\1/' /proc/cmdline)
for name in "$@"; do
  if [ "$(cut -d. -f1 /proc/uptime)" -gt "$seconds" ]; then
    echo "SKIPPED $name: the time is up (HOLDFAST_VM_LIMIT)"
    continue
  fi
  begin=$SECONDS log=/run/${name//\//-}.log
  if timeout -k 5 180 bash ${verbose:+-x} "/holdfast/cases/$name.sh" >"$log" 2>&1; then
    echo "ok      $name ($((SECONDS - begin)) s)"
    [ -z "$verbose" ] || sed 's/^/    /' "$log"
  else
    failed=$((failed + 1))
    echo "FAILED  $name ($((SECONDS - begin)) s)"
    sed 's/^/    /' "$log" | tail -n 60
    echo "    holdfast said:"
    tail -n 20 "$data.log" | sed 's/^/    /'
  fi
done
[ $failed -gt 0 ] || echo "vm: all is well"
