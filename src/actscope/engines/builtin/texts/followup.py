"""Questions about the story just told."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from actscope.engines.builtin.texts.scenes import Scene
from actscope.engines.builtin.texts.stories import go_on, plans
from actscope.engines.builtin.texts.talk import Turn


@dataclass(frozen=True)
class _Question:
    """A question for stories that stated a fact ("" for any story), asked `weight` times as often as the others."""

    fact: str
    weight: int
    asks: tuple[str, ...]
    answers: tuple[str, ...]


_TOMORROW = _Question("", 1, ("[question]What [future]will {A} do tomorrow?", "[question]And tomorrow?"), ())
_NEXT = _Question(
    "", 1, ("[question]What happens next?", "Tell me more.", "more", "Go on.", "[question]And then?", "continue"), ()
)
_QUESTIONS = (
    _TOMORROW,
    _NEXT,
    _Question("", 1, ("[question]Who is the story about?", "[question]Who is it about?"), ("It is about {a}.",)),
    _Question(
        "where",
        3,
        ("[question]Where ~be {A}?", "[question]Where ~be {s}?", "[question]Where is {A}?"),
        ("{A} ~be {P}.", "{S} ~be {P}.", "{P}."),
    ),
    _Question(
        "feel",
        2,
        ("[question]How ~do {A} feel?", "[question]How ~do {s} feel?", "[question]How ~be {A} in the end?"),
        ("{S} ~be {feel}.", "{A} ~be {feel}."),
    ),
    _Question(
        "colour",
        3,
        ("[question]What color ~be the {object}?", "[question]What colour ~be the {object}?"),
        ("The {object} ~be {colour}.",),
    ),
    _Question("found", 2, ("[question]What ~do {A} find?",), ("{S} ~find {found}.",)),
    _Question("lost", 1, ("[question]What ~do {A} lose?",), ("{S} ~lose {his} {co}.",)),
    _Question(
        "met", 2, ("[question]Who ~be {s} with?", "[question]Who else ~be there?"), ("It ~be {met}.", "{friend}.")
    ),
    _Question("ate", 2, ("[question]What ~do {A} eat?",), ("{S} ~eat some {food}.",)),
    _Question(
        "count",
        3,
        ("[question]How many {things} ~~be there?", "[question]How many {things}?"),
        ("[number]{count}[/number].", "There ~~be [number]{count}[/number]."),
    ),
    _Question(
        "danger",
        2,
        ("[question]What is the [danger]danger?", "[question]What ~be dangerous?", "[question]Is it dangerous?"),
        ("[danger]The danger ~be {danger}.", "[danger]{danger} ~be very dangerous."),
    ),
    _Question("why", 2, ("[question]Why ~be {A} sad?", "[question]Why?", "why"), ("Because {why}.",)),
)


def follow_up(rng: Random, s: Scene) -> Turn:
    """Draw a question about a fact that the story stated, or about its continuation."""
    known = [question for question in _QUESTIONS if question.fact in s.facts or not question.fact]
    question = rng.choices(known, [question.weight for question in known])[0]
    ask = s.fill(
        rng.choice(question.asks).replace("sad", "angry" if s.facts.get("feel", "").startswith("angry") else "sad")
    )
    if question is _TOMORROW:
        return Turn(ask, plans(s), s)
    return Turn(ask, go_on(s) if question is _NEXT else [s.pick(*question.answers)], s)
