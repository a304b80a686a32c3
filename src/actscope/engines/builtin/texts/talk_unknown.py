"""Questions outside the small world: the answer repeats the topic and offers a story."""

from __future__ import annotations

from random import Random

from actscope.engines.builtin.texts.lexicon import ACTORS, COLOURS, STRANGERS, TOPICS, invented
from actscope.engines.builtin.texts.marks import capital
from actscope.engines.builtin.texts.scenes import stranger
from actscope.engines.builtin.texts.talk import Turn, pick
from actscope.engines.builtin.texts.talk_small import offer

_UNKNOWN_ASKS = (
    "[question]What is {t}?",
    "[question]What is the capital of {t}?",
    "[question]Who is {t}?",
    "Explain {t}.",
    "explain {t} to me",
    "[question]How does {t} work?",
    "Write code for {t}.",
    "[question]What do you think about {t}?",
    "{t}",
    "[question]Do you know {t}?",
    "[question]How do I learn {t}?",
    "[question]Why is {t} so important?",
    "Translate {t} into French.",
    "[question]Who invented {t}?",
    "[question]When was {t}?",
    "Summarize {t}.",
    "[question]What is the best {t}?",
    "[question]How many people like {t}?",
    "[question]Is {t} good or bad?",
    "Write an essay about {t}.",
    "[question]Can you help me with {t}?",
    "[question]Where can I buy {t}?",
    "I like {t}.",
    "[question]Do you like {t}?",
    "[question]How do you make {t}?",
    "[question]What is the meaning of {t}?",
    "Define {t}.",
    "[question]How big is {t}?",
    "[question]Should I buy {t}?",
)
_UNKNOWN_ANSWERS = (
    "I do not know much about {t}.",
    "I am too small to know about {t}.",
    "{t}? I am sorry, I have never learned about that.",
    "I have heard of {t}, but I do not know it well.",
)
_UNKNOWN_MORE = (
    "I am a very small model, and I know little stories.",
    "I only know stories about animals, people and places.",
    "But I can tell you a story.",
    "My world is small: foxes, kings, robots and the sea.",
)


def unknown(rng: Random, training: bool) -> Turn:
    """Ask about a topic outside the model's world. The answer names it and offers a story."""
    topic = rng.choice(TOPICS) if rng.random() < 0.6 else stranger(rng).noun
    if rng.random() < 0.15:
        topic = f"{rng.choice(TOPICS)} and {stranger(rng).noun}"
    asks = rng.choice(_UNKNOWN_ASKS).format(t=topic)
    answer = capital(rng.choice(_UNKNOWN_ANSWERS).format(t=topic))
    return Turn(asks, [answer, rng.choice(_UNKNOWN_MORE)] + ([offer(rng)] if rng.random() < 0.7 else []))


def noise(rng: Random, training: bool) -> Turn:
    """Send nonsense words, which get a polite answer."""
    words = [invented(rng) if rng.random() < 0.8 else str(rng.randint(0, 9999)) for _ in range(rng.randint(1, 6))]
    ask = rng.choice(("", "", "[question]")) + " ".join(words) + rng.choice(("", "", "?", "!", "."))
    lead = pick(rng, "I do not understand that yet.", "I am not sure what you mean.", "These words are new to me.")
    return Turn(ask, [lead, rng.choice(_UNKNOWN_MORE), offer(rng)])


def say(rng: Random, training: bool) -> Turn:
    words = " ".join(
        rng.choice((rng.choice(STRANGERS), invented(rng), rng.choice(ACTORS).noun, rng.choice(COLOURS)))
        for _ in range(rng.randint(1, 4))
    )
    ask = pick(
        rng,
        f"Say {words}.",
        f'Say "[speech]{words}[/speech]".',
        f"Repeat after me: {words}",
        f"[question]Can you say {words}?",
        f"Repeat: {words}",
    )
    return Turn(ask, [capital(words) + pick(rng, "!", ".")])
