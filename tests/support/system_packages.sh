#!/bin/sh
# Debian packages that the tests use. Without root they are asked for, and the tests that need them skip.
set -eu
wanted="dataset-fashion-mnist iproute2 g++ slurm-wlm munge chromium chromium-driver nginx-light"
missing=""
for name in $wanted; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing="$missing $name"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then
    run=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    run="sudo"
else
    echo "These tests are skipped until an administrator runs: apt-get install$missing" >&2
    exit 0
fi
# Some of them are servers, which Debian would start on a machine that starts services: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $run tee $policy >/dev/null
    $run chmod +x $policy
    trap '$run rm -f $policy' EXIT
fi
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $missing >/dev/null
