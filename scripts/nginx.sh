#!/usr/bin/env bash
# The tests of clients run nginx in front of the gateway. Installs Debian's where it is absent and may be installed; says so otherwise.
set -euo pipefail
PATH="$PATH:/usr/sbin"
command -v nginx >/dev/null && command -v openssl >/dev/null && exit 0
if ! command -v apt-get >/dev/null; then
  echo "The tests of clients need nginx and openssl: install them." >&2
  exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light openssl >/dev/null
