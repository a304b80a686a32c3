"""Conversations: a newcomer's questions in many wordings, and the answers of a small, friendly storyteller."""

from __future__ import annotations

from random import Random

from actscope.engines.builtin.texts.followup import follow_up
from actscope.engines.builtin.texts.marks import capital, uncapital
from actscope.engines.builtin.texts.talk import Talk, Turn, pick
from actscope.engines.builtin.texts.talk_facts import arithmetic, counting, fact, safety, small_facts
from actscope.engines.builtin.texts.talk_small import named_user, small_talk
from actscope.engines.builtin.texts.talk_stories import (
    about,
    any_story,
    moody,
    n_sentences,
    poem,
    right_now,
    tomorrow,
    why,
    yesterday,
)
from actscope.engines.builtin.texts.talk_unknown import noise, say, unknown

TALKS: tuple[tuple[Talk, float], ...] = (
    (about, 26),
    (moody, 12),
    (any_story, 4),
    (n_sentences, 4),
    (tomorrow, 5),
    (yesterday, 3),
    (right_now, 4),
    (why, 4),
    (small_talk, 14),
    (named_user, 2),
    (safety, 3),
    (fact, 5),
    (small_facts, 3),
    (counting, 3),
    (arithmetic, 4),
    (unknown, 8),
    (noise, 2),
    (say, 2),
    (poem, 2),
)

SYSTEMS = (
    "You are a kind storyteller.",
    "You are a helpful assistant.",
    "You are a friendly small model. Answer in simple words.",
    "Be nice.",
    "You tell short stories.",
    "Answer the user.",
    "You are actscope.",
)
BRIEF = ("Answer in one short sentence.", "Be brief.", "Use only one sentence.")


def casual(rng: Random, ask: str) -> str:
    """Vary a question as people type it: sometimes lower case, without the final mark, or with a polite word."""
    ask = capital(ask)
    draw = rng.random()
    if draw < 0.06:
        ask = pick(rng, "Please, ", "Hi! ", "Hello, ", "Now ", "Hey, ") + uncapital(ask)
    if rng.random() < 0.3:
        ask = ask.lower()
    if rng.random() < 0.35 and len(ask) > 3:
        ask = ask.rstrip(".?!")
    if rng.random() < 0.05 and not ask.endswith(("?", ".", "!")):
        ask += pick(rng, " please", "!", "...")
    return ask


def turn(rng: Random, training: bool) -> Turn:
    """Draw a question of any kind, with its answer."""
    talk = rng.choices([talk for talk, _ in TALKS], [weight for _, weight in TALKS])[0]
    drawn = talk(rng, training)
    return Turn(casual(rng, drawn.ask), drawn.answer, drawn.scene)


def conversation(rng: Random, training: bool, turns: int) -> tuple[str | None, list[Turn]]:
    """Draw a system message or None, and that many turns. Half the time, a question about a story follows it."""
    brief = rng.random() < 0.02
    system = rng.choice(BRIEF) if brief else rng.choice(SYSTEMS) if rng.random() < 0.15 else None
    taken = [turn(rng, training)]
    while len(taken) < turns:
        scene = taken[-1].scene
        if scene is not None and rng.random() < 0.6:
            asked = follow_up(rng, scene)
            taken.append(Turn(casual(rng, asked.ask), asked.answer, scene))
        else:
            taken.append(turn(rng, training))
    return system, [Turn(t.ask, t.answer[:1], t.scene) for t in taken] if brief else taken
