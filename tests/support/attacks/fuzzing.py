"""A bounded fuzz run of one group of readers, in a process of its own: `python -m support.attacks.fuzzing GROUP ROUNDS`.

It prints one JSON line for each reader: how many changed inputs were read and refused, foreign errors, the highest resident
memory of the process so far, and the CPU time of the slowest input.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from support.attacks.mutations import changed

from actscope.errors import ActscopeError

#: Most address space of the process: what a lying size asks for beyond it is a MemoryError, and a foreign error.
ADDRESS_SPACE = 8 << 30
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Target:
    """A reader: seeds that its project's own writers made, what reads one input, and how many inputs it is given."""

    name: str
    seeds: list[bytes]
    read: Callable[[bytes], object]
    rounds: int = 300
    change: Callable[[bytes, random.Random], bytes] = changed
    also: tuple[type[Exception], ...] = ()  # errors of the framework around it that are answers to a client


@dataclass
class Outcome:
    """What a reader did with its inputs."""

    name: str
    read: int = 0
    refused: int = 0
    foreign: list[str] = field(default_factory=list)
    rss_mb: float = 0.0
    slowest_s: float = 0.0


def run(target: Target, factor: float) -> Outcome:
    """Give a reader its seeds, which it must read, and changed copies of them."""
    outcome, chance = Outcome(target.name), random.Random(zlib.crc32(target.name.encode()))
    answers: tuple[type[Exception], ...] = (ActscopeError, *target.also)
    for seed in target.seeds:
        target.read(seed)
    for number in range(max(1, round(target.rounds * factor))):
        data = target.change(chance.choice(target.seeds), chance)
        began = time.process_time()
        try:
            target.read(data)
            outcome.read += 1
        except answers:
            outcome.refused += 1
        except Exception as error:
            outcome.foreign.append(f"input {number}, {data[:60]!r}…: {_where(error)}")
        outcome.slowest_s = max(outcome.slowest_s, time.process_time() - began)
    outcome.foreign = [*dict.fromkeys(outcome.foreign)][:_MOST_SHOWN]
    outcome.rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome


def _where(error: Exception) -> str:
    """Return an error and the last lines of the package that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/actscope/" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
    return f"{type(error).__name__}: {str(error)[:200]} at {places}"


def main(group: str, factor: float) -> None:
    """Run a group's targets and print their outcomes."""
    warnings.simplefilter("error", RuntimeWarning)
    module = import_module(f"support.attacks.{group}")
    with tempfile.TemporaryDirectory(prefix="acts-") as folder:
        targets: Iterable[Target] = module.targets(Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        for target in targets:
            print(json.dumps(asdict(run(target, factor))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
