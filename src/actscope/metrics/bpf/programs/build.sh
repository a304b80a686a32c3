#!/usr/bin/env bash
# Compile the programs to the objects that are shipped. Needs clang 14 and llvm-strip (Debian 12: clang llvm libbpf-dev
# linux-libc-dev), on any architecture. `build.sh DIR` writes them there.
set -euo pipefail
cd "$(dirname "$0")"
to="${1:-.}"
for name in blockio system; do
	"${CLANG:-clang}" -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-prefix-map="$PWD=." \
		-I"/usr/include/$(uname -m)-linux-gnu" -c "$name.bpf.c" -o "$to/$name.bpf.o"
	"${LLVM_STRIP:-llvm-strip}" -g "$to/$name.bpf.o"
done
