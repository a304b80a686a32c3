"""A talk: a question of one kind with its answer, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from actscope.engines.builtin.texts.lexicon import ACTORS
from actscope.engines.builtin.texts.scenes import Scene


@dataclass(frozen=True)
class Turn:
    """A question and its answer, both marked. `scene` is the story that later questions may be about."""

    ask: str
    answer: list[str]
    scene: Scene | None = None


Talk = Callable[[Random, bool], Turn]


def pick(rng: Random, *choices: str) -> str:
    return rng.choice(choices)


def new_story(rng: Random, training: bool, known: bool = False) -> Scene:
    """Draw a scene, mostly in the past tense; with an actor of the lexicon if `known`."""
    actor = rng.choice(ACTORS) if known else None
    return Scene.draw(rng, rng.choice(("past", "past", "past", "present")), actor, training)


def name_of(s: Scene) -> str:
    """Draw a user's name for the actor."""
    return s.rng.choice((s.actor.a, s.actor.a, s.actor.a, s.actor.the))


def place_of(s: Scene) -> str:
    """Draw a user's name for the place, mostly with the preposition that the answer uses."""
    if s.rng.random() < 0.6:
        return s.place.at
    noun = s.place.phrase
    bare = noun.removeprefix("the ")
    prep = s.rng.choice(("in", "at", "on", "by", "near", s.place.prep))
    return f"{prep} " + s.rng.choice((noun, noun, f"a {bare}" if bare[0] not in "aeiou[" else noun, bare))
