#!/usr/bin/env bash
# What the tests of the collectors need beyond Python: libbpf, the compiler of the programs in the kernel, and fio. Installs what
# is absent and may be installed. Nothing fails without: those tests skip and say so.
set -euo pipefail
missing=()
/sbin/ldconfig -p | grep 'libbpf\.so\.1 ' >/dev/null || missing+=(libbpf1)
command -v clang >/dev/null || missing+=(clang)
command -v llvm-strip >/dev/null || missing+=(llvm)
test -e /usr/include/bpf/bpf_helpers.h || missing+=(libbpf-dev linux-libc-dev)
command -v fio >/dev/null || missing+=(fio)
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
  echo "Some tests of the collectors need ${missing[*]}, and skip: install what your system calls so." >&2
  exit 0
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
  echo "Some tests of the collectors skip: ${missing[*]} could not be installed." >&2
}
