"""A process is known by its id and its start time."""

from __future__ import annotations

from actscope.runtime.process import Process, process_start


def test_a_process_is_distinguished_from_a_later_one_with_the_same_pid() -> None:
    me = Process.current()
    assert me.alive() and not Process(me.pid, me.start + 1, me.namespace).alive()
    assert process_start(2**22 + 1) is None
