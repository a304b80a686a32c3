"""Futex wait and wake, and memory fences, on words in shared memory; through libc, without a compiler.

If the futex call is missing or forbidden (another architecture, a seccomp filter), waiting falls back to polling.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import platform
import threading
import time
from collections.abc import Callable

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_FUTEX_WAIT, _FUTEX_WAKE, _EVERYONE = 0, 1, 0x7FFFFFFF  # without FUTEX_PRIVATE_FLAG: the word is in shared memory
_POLL_S = 0.0005


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_POINTER, _U32 = ctypes.c_void_p, ctypes.c_uint32
_ARGUMENTS = (ctypes.c_long, _POINTER, ctypes.c_int, _U32, _POINTER, _POINTER, _U32)

_sleep = ctypes.CDLL(None, use_errno=True).syscall  # releases the GIL while it waits
_sleep.argtypes, _sleep.restype = _ARGUMENTS, ctypes.c_long
# A wake call never blocks, and releasing the GIL on the model's thread can cost that thread a whole switch interval (5 ms).
_wake = ctypes.PyDLL(None).syscall
_wake.argtypes, _wake.restype = _ARGUMENTS, ctypes.c_long


def wait(address: int, expected: int, timeout_s: float) -> bool:
    """Sleep while the 32-bit word at `address` equals `expected`. Spurious wake-ups are possible.

    Returns False if `timeout_s` seconds passed, else True.
    """
    if _SYS_FUTEX is None or timeout_s <= 0:
        return _poll(address, expected, timeout_s)
    seconds, fraction = divmod(timeout_s, 1.0)
    limit = _Timespec(int(seconds), int(fraction * 1e9))
    if _sleep(_SYS_FUTEX, address, _FUTEX_WAIT, expected, ctypes.addressof(limit), None, 0) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EAGAIN, errno.EINTR):
        return True
    return False if code == errno.ETIMEDOUT else _poll(address, expected, timeout_s)


def wake(address: int) -> None:
    """Wake all threads, of any process, that wait on the word at `address`. Keeps the GIL."""
    if _SYS_FUTEX is not None:
        _wake(_SYS_FUTEX, address, _FUTEX_WAKE, _EVERYONE, None, None, 0)


def _poll(address: int, expected: int, timeout_s: float) -> bool:
    word = ctypes.c_uint32.from_address(address)
    deadline = time.monotonic() + timeout_s
    while word.value == expected:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_POLL_S, left))
    return True


_lock = threading.Lock()


def _lock_fence() -> None:
    _lock.acquire()
    _lock.release()


def _strong_fence() -> Callable[[], object]:
    """Return a sequentially consistent fence: libatomic's atomic_thread_fence, or acquiring and releasing a lock.

    The lock is used on x86, and where libatomic is not installed.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        return _lock_fence
    try:
        native = ctypes.PyDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        return _lock_fence
    native.argtypes, native.restype = (ctypes.c_int,), None
    return lambda: native(5)


#: From this size in bytes on, memcpy may use non-temporal stores (the minimum that glibc's tunable for it accepts).
STREAMING_BYTES = 0x4040

#: Full memory fence: orders all loads and stores before it against all after it, on any architecture.
#: x86 needs it in one case: memcpy writes large blocks with non-temporal stores, which may become visible before
#: earlier ordinary stores (Intel SDM vol. 3, 9.2.2). Acquiring a lock executes a LOCK-prefixed instruction: 0.1 µs.
full_fence: Callable[[], object] = _strong_fence()


def _nothing() -> None:
    """Do nothing: x86-64 keeps stores in order and loads in order (TSO), and memcpy ends non-temporal stores with SFENCE."""


#: Orders stores against later stores, and loads against later loads. A no-op on x86-64.
fence: Callable[[], object] = _nothing if platform.machine() in ("x86_64", "AMD64") else full_fence
