"""What the ring's tests run in other processes. Each says a line of JSON when it has something to say."""

from __future__ import annotations

import json
import sys

from actscope.bench.ring import Stamper, Verifier
from actscope.ring.host import RingReader, RingSpec, RingWriter


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def write_forever(rows: str, steps: str, per_step: str) -> None:
    """Make a ring, write one step, say its name; then write without end, at full speed, until killed."""
    writer = RingWriter.create(RingSpec(int(rows), 8, int(steps), int(steps)))
    stamper = Stamper()
    writer.write(*stamper.make(int(per_step)))
    say(name=writer.name)
    while True:
        writer.write(*stamper.make(int(per_step)))


def write_and_hold(rows: str, steps: str, per_step: str) -> None:
    """Make a ring with ten steps in it, say its name, and wait to be killed."""
    writer = RingWriter.create(RingSpec(int(rows), 8, int(steps), int(steps)))
    stamper = Stamper()
    for _ in range(10):
        writer.write(*stamper.make(int(per_step)))
    say(name=writer.name)
    sys.stdin.read()


def read_until(name: str, rows: str) -> None:
    """Read and verify so many rows of the ring, say so, then drain it to its end, and say the account."""
    reader = RingReader.attach(name)
    say(attached=True)
    verifier, told = Verifier(), False
    while reader.wait(20.0):
        batch = reader.read()
        if batch is not None:
            verifier.take(batch)
        if verifier.rows >= int(rows) and not told:
            told = True
            say(reached=verifier.rows)
    stats = reader.stats()
    say(
        torn=verifier.torn_rows,
        miscounted=verifier.miscounted_gaps,
        rows=stats.rows,
        missed_rows=stats.missed_rows,
        steps=stats.steps,
        missed_steps=stats.missed_steps,
        raced=stats.raced_steps,
    )


def attach_and_leave(name: str) -> None:
    """Attach and end without closing anything, as a reader that crashes does."""
    reader = RingReader.attach(name)
    say(attached=reader.name)


if __name__ == "__main__":
    {f.__name__: f for f in (write_forever, write_and_hold, read_until, attach_and_leave)}[sys.argv[1]](*sys.argv[2:])
