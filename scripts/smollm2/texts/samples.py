"""A labelled text, and the division of lists into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Part = Literal["fit", "choose", "held"]
PARTS: tuple[Part, ...] = ("fit", "choose", "held")
#: Place of an item in its list, modulo 5, and the part that it belongs to: 60 %, 20 % and 20 %.
_PART_OF: tuple[Part, ...] = ("fit", "choose", "fit", "held", "fit")


@dataclass(frozen=True)
class Sample:
    """One message of a chat, and what holds of it.

    Attributes:
        text: The message.
        labels: For each label that is known of this text, whether it holds.
        cue: Character from which the labels can be seen. What is before it counts neither for nor against them.
        role: Who says it.
        before: The message before it, "" if it is the first.
        group: The kind of text, for the tables.
    """

    text: str
    labels: dict[str, bool]
    cue: int = 0
    role: Literal["user", "assistant"] = "assistant"
    before: str = ""
    group: str = ""


def part(items: Sequence[str], which: Part) -> list[str]:
    """Return the items of a list that belong to a part."""
    return [item for place, item in enumerate(items) if _PART_OF[place % len(_PART_OF)] == which]


def lines(text: str) -> list[str]:
    """Return the lines of a text that are not empty."""
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def words(text: str) -> list[str]:
    """Return the items of a text that are separated by commas."""
    return [word.strip() for word in text.replace("\n", " ").split(",") if word.strip()]


def filled(template: str, lists: dict[str, list[str]], rng: Random) -> str:
    """Fill each {name} of a template with an item of the list of that name."""
    return template.format_map({name: rng.choice(items) for name, items in lists.items()})


def any_role(rng: Random) -> Literal["user", "assistant"]:
    """Return a speaker, either as often as the other."""
    return "user" if rng.random() < 0.5 else "assistant"
