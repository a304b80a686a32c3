"""Small talk."""

from __future__ import annotations

from random import Random

from actscope.engines.builtin.texts.lexicon import ACTORS, NAMED, PLACES, invented
from actscope.engines.builtin.texts.marks import capital
from actscope.engines.builtin.texts.small_talk import SMALL_TALK
from actscope.engines.builtin.texts.stories import tell
from actscope.engines.builtin.texts.talk import Turn, new_story, pick

_OFFER = (
    "Would you like to hear a story about {a}?",
    "Shall I tell you about {a} {p}?",
    "I can tell you a story about {a}.",
    "Ask me about {a} {p}.",
    "Try this: tell me about {a} {p}.",
)


def offer(rng: Random) -> str:
    """Draw an invitation to ask for a story with an actor of the lexicon."""
    sentence = rng.choice(_OFFER).format(a=rng.choice(ACTORS).a_plain, p=rng.choice(PLACES).at)
    return ("[question]" if sentence.endswith("?") else "") + sentence


def small_talk(rng: Random, training: bool) -> Turn:
    asks, answers = rng.choice(SMALL_TALK)
    ask = rng.choice(asks)
    ask = "[question]" + ask if ask.endswith("?") and len(ask) > 1 else ask
    if answers == ("STORY",):
        s = new_story(rng, training, known=True)
        return Turn(ask, [pick(rng, "Good!", "Gladly.", "Then listen."), *tell(s)], s)
    answer = [rng.choice(answers)]
    return Turn(ask, answer + ([offer(rng)] if rng.random() < 0.4 else []))


def named_user(rng: Random, training: bool) -> Turn:
    name = rng.choice(NAMED).noun if rng.random() < 0.6 else capital(invented(rng))
    ask = pick(
        rng, f"My name is {name}.", f"I am {name}.", f"Hello, my name is {name}.", f"Hi, I'm {name}", f"Call me {name}."
    )
    answer = pick(
        rng, f"Hello, {name}! It is [joy]nice to meet you.", f"Welcome, {name}! I am [joy]glad that you are here."
    )
    return Turn(ask, [answer, offer(rng)])
