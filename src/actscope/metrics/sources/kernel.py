"""What the kernel and this process's rights allow: why programs cannot be loaded here, and the one command that helps."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from actscope.errors import MetricsError
from actscope.metrics.bpf.libbpf import libbpf

TYPES = Path("/sys/kernel/btf/vmlinux")
#: Inode of the PID namespace that the kernel starts with.
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
_OLDEST = (5, 11)
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


@cache
def kernel_has(tracepoint: str) -> bool:
    """Return whether the kernel's type information has a tracepoint."""
    try:
        return b"\0btf_trace_" + tracepoint.encode() + b"\0" in TYPES.read_bytes()
    except OSError:
        return False


def why_no_programs(command: str, *, needs_pids: bool = False) -> str:
    """Return why programs cannot be loaded by this process, with what to do; "" if nothing is known against it.

    Args:
        command: The command as it was typed, without `sudo`.
        needs_pids: Whether the programs tell processes by their number in the first PID namespace.
    """
    if not _is_allowed():
        return f"needs root, or the capabilities CAP_BPF and CAP_PERFMON: sudo {command}"
    try:
        libbpf()
    except MetricsError as error:
        return f"needs {error}"
    if not TYPES.exists():
        return (
            f"needs the kernel's type information, {TYPES}, which is not to be seen: "
            "mount -t sysfs sysfs /sys (or a kernel with CONFIG_DEBUG_INFO_BTF=y)"
        )
    version = tuple(int("0" + "".join(filter(str.isdigit, part))) for part in platform.release().split(".")[:2])
    if version < _OLDEST:
        return f"needs Linux 5.11 or later; this is {platform.release()}"
    if needs_pids and not _sees_all_pids():
        return "needs the machine's own PIDs, and this is another PID namespace: docker run --pid=host"
    return ""


def explained(error: MetricsError, command: str) -> str:
    """Return why the kernel refused the programs, with what to do."""
    try:
        mode = _LOCKDOWN.read_text()
    except OSError:
        mode = ""
    if "[confidentiality]" in mode:
        return "the kernel is locked down (confidentiality): boot with lockdown=integrity"
    if error.errno in (1, 13):
        return (
            f"{error}. The machine refuses programs in the kernel here. In a container: docker run --privileged --pid=host; "
            f"else: sudo {command}"
        )
    return str(error)


def _is_allowed() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    line = next((one for one in status.splitlines() if one.startswith("CapEff:")), "CapEff: 0")
    held = int(line.split()[1], 16)
    return bool(held >> _CAP_SYS_ADMIN & 1) or bool(held >> _CAP_BPF & 1 and held >> _CAP_PERFMON & 1)


def _sees_all_pids() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False
