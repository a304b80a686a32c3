"""Counters: what a process has done, what was lost and what is in doubt, each with its meaning and what to do about it.

A class of counts is a dataclass under `counting(prefix)`, whose fields are made by `counted` or `current`. So the meaning stands
beside the field, and whoever shows counters (logs, `info`, Prometheus, `actscope doctor`) needs no table of its own.

    process that counts ──▶ `counters_of` ──▶ `CounterLog` (once a kind, then at powers of ten)
                                        └──▶ a `CounterReport`, in a file of the runtime directory or in an answer
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

#: `work` was done; `now` is a current value; `loss` is gone for good; `doubt` was left out because it could not be assigned with
#: certainty, or came too late; `fault` is an error or a restart that was survived.
Kind = Literal["work", "now", "loss", "doubt", "fault"]

#: Kinds of which one is already worth a look.
TROUBLE: frozenset[Kind] = frozenset({"loss", "doubt", "fault"})

Name = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]{0,79}\Z")]
Words = Annotated[str, Meta(max_length=1000)]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one field of a class of counts means."""

    kind: Kind
    help: str
    todo: str = ""


def counted(kind: Literal["work", "loss", "doubt", "fault"], help: str, todo: str = "") -> int:
    """Return a dataclass field that counts from 0.

    Args:
        kind: What a count above zero stands for.
        help: What is counted, in one sentence.
        todo: What to do about it. Needed for all kinds but `work`.
    """
    return field(default=0, metadata={_KEY: Meaning(kind, help, todo)})


def current(help: str) -> int:
    """Return a dataclass field that holds a current value, 0 at first. `help` says of what, in one sentence."""
    return field(default=0, metadata={_KEY: Meaning("now", help)})


_KEY = "counter"
T = TypeVar("T")

#: Every class of counts, with the prefix of its counters.
CLASSES: dict[type, str] = {}


def counting(prefix: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that names the counters of a dataclass `<prefix>_<field>`. It goes above `@dataclass`."""

    def name(kind: type[T]) -> type[T]:
        CLASSES[kind] = prefix
        return kind

    return name


class HoldsCounts(Protocol):
    """A dataclass, by what all of them have."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]


class Counter(msgspec.Struct, frozen=True):
    """One counter and its value."""

    name: Name
    value: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    kind: Kind = "work"
    help: Words = ""
    todo: Words = ""

    @property
    def tells(self) -> bool:
        """Return whether its value is worth a look."""
        return self.kind in TROUBLE and self.value > 0


class CounterReport(msgspec.Struct, frozen=True):
    """The counters of one process about one engine, or of a process about itself.

    Attributes:
        source: The process that counts: `model`, `sidecar`, `engine` or `gateway`.
        counters: Its counters.
        engine: Card id of the engine, or "".
        part: Index of the part of the engine (pipeline stage), from 0.
    """

    source: Name
    counters: Annotated[list[Counter], Meta(max_length=1000)]
    engine: Annotated[str, Meta(max_length=64)] = ""
    part: Annotated[int, Meta(ge=0, le=4096)] = 0


def counters_of(counts: HoldsCounts, prefix: str = "") -> list[Counter]:
    """Return the counters of an object of a class of counts: its whole numbers.

    A field without a meaning is shown under its name.

    Args:
        counts: The object.
        prefix: Prefix of the names. "": the one that its class was given.
    """
    prefix = prefix or CLASSES.get(type(counts), "")
    values = {one.name: getattr(counts, one.name) for one in fields(counts)}
    return [
        _counter(f"{prefix}_{one.name}".lstrip("_"), values[one.name], one.metadata.get(_KEY))
        for one in fields(counts)
        if isinstance(values[one.name], int) and not isinstance(values[one.name], bool)
    ]


def _counter(name: str, value: int, meaning: Meaning | None) -> Counter:
    if meaning is None:
        return Counter(name, max(value, 0), "work", name.replace("_", " "))
    return Counter(name, max(value, 0), meaning.kind, meaning.help, meaning.todo)


def meanings(kind: type[HoldsCounts]) -> dict[str, Meaning | None]:
    """Return the meaning of each field of a class of counts that holds a whole number; None for one without a meaning."""
    return {one.name: one.metadata.get(_KEY) for one in fields(kind) if one.type in ("int", int)}


def summed(reports: Iterable[CounterReport]) -> list[Counter]:
    """Return the counters of several reports as one list: values of the same name are added up."""
    found: dict[str, Counter] = {}
    for report in reports:
        for one in report.counters:
            known = found.get(one.name)
            found[one.name] = one if known is None else msgspec.structs.replace(known, value=known.value + one.value)
    return list(found.values())


class CounterLog:
    """Logs each counter of a loss, a doubt or a fault when it passes 1, 10, 100, …: what it is, and what to do."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next: dict[str, int] = {}

    def tell(self, counters: Iterable[Counter]) -> None:
        """Log the counters that have passed a power of ten since the last call."""
        for one in counters:
            due = self._next.get(one.name, 1)
            if one.kind in TROUBLE and one.value >= due:
                self._next[one.name] = 10 ** len(str(one.value))
                self._log.warning("%s", line_of(one))


def line_of(one: Counter) -> str:
    """Return a counter as one line of text, without control characters."""
    todo = f". What to do: {one.todo}" if one.todo else ""
    return printable(f"{one.name} = {one.value}: {(one.help or one.name).rstrip('. ')}{todo}".rstrip(". "))


def printable(text: str) -> str:
    """Return a text without control characters and marks of direction: a report may come from a file."""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]|[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", "?", text)
