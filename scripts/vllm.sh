#!/usr/bin/env bash
# What vLLM on CPU needs from the system: libnuma, and a C++ compiler for Inductor. Installs what is absent and may be installed.
set -euo pipefail
missing=()
/sbin/ldconfig -p | grep 'libnuma\.so\.1 ' >/dev/null || missing+=(libnuma1)
command -v g++ >/dev/null || missing+=(g++)
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
  echo "The vLLM tests need ${missing[*]}: install what your system calls so." >&2
  exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
