"""Requests for stories, and questions that a story answers."""

from __future__ import annotations

from random import Random

from actscope.engines.builtin.texts.lexicon import NUMBERS, article, plural
from actscope.engines.builtin.texts.scenes import Scene
from actscope.engines.builtin.texts.stories import MOODS, go_on, plans, tell
from actscope.engines.builtin.texts.talk import Turn, name_of, new_story, pick, place_of


def about(rng: Random, training: bool) -> Turn:
    """Ask for a story about an actor, with or without a place."""
    s = new_story(rng, training)
    x, p = name_of(s), place_of(s)
    ask = pick(
        rng,
        f"Tell me about {x} {p}.",
        f"Tell me about {x} {p}.",
        f"Tell me about {x} {p}.",
        f"Tell me about {x} {p}.",
        f"Write about {x} {p}.",
        f"Tell me a story about {x} {p}.",
        f"Write a story about {x} {p}.",
        f"A story about {x} {p}, please.",
        f"[question]Can you tell me about {x} {p}?",
        f"{x} {p}",
        f"I want to hear about {x} {p}.",
        f"Describe {x} {p}.",
        f"Write a short story about {x} {p}.",
        f"Give me a story about {x} {p}.",
        f"Say something about {x} {p}.",
        f"Tell me about {x}.",
        f"Tell me about {x}.",
        f"Tell me a story about {x}.",
        f"Write about {x}.",
        f"Tell me something about {x}.",
        f"Write a story about {x}.",
        f"I want a story about {x}.",
        f"[question]Do you know a story about {x}?",
        f"{s.actor.noun}",
        f"Tell me a story {p}.",
        f"Tell me about {plural(s.actor.noun) if not s.actor.proper else x}.",
        f"[question]What happened to {s.actor.the} {p}?",
        f"[question]Could you write something about {x} {p}?",
    )
    return Turn(ask, tell(s), s)


_MOOD_WORDS = {
    "sad": ("[sadness]sad", "very [sadness]sad", "[sadness]unhappy"),
    "happy": ("[joy]happy", "[joy]cheerful", "nice", "good"),
    "scary": ("[fear]scary", "[danger]dangerous", "[fear]spooky"),
    "funny": ("funny", "silly"),
    "kind": ("[kindness]kind", "sweet"),
    "angry": ("[anger]angry",),
    "exciting": ("exciting", "thrilling"),
    "quiet": ("quiet", "bedtime", "calm"),
    "": ("short", "new", "little", "long", "beautiful"),
}


def moody(rng: Random, training: bool) -> Turn:
    """Ask for a story in a mood, with or without an actor: "Tell me a sad story."."""
    mood = rng.choice(list(MOODS))
    s = new_story(rng, training)
    word, x, p = rng.choice(_MOOD_WORDS[mood]), name_of(s), place_of(s)
    a = article(word.rpartition("]")[2])
    ask = pick(
        rng,
        f"Tell me {a} {word} story about {x}.",
        f"Tell me {a} {word} story about {x} {p}.",
        f"Tell me {a} {word} story.",
        f"Write {a} {word} story about {x}.",
        f"{a} {word} story about {x}, please.",
        f"Tell me {a} {word} story about {x}.",
        f"I want to hear {a} {word} story.",
        f"[question]Can you tell me {a} {word} story about {x}?",
        f"{a} {word} story",
        f"[question]Do you know {a} {word} story?",
        f"Write {a} {word} story about {x} {p}.",
    )
    return Turn(ask, tell(s, mood), s)


def any_story(rng: Random, training: bool) -> Turn:
    s = new_story(rng, training, known=True)
    ask = pick(
        rng,
        "Tell me a story.",
        "Tell me a story.",
        "Tell me something.",
        "Write a story.",
        "story",
        "A story, please.",
        "Once upon a time",
        "[question]Can you tell me a story?",
        "I am bored.",
        "Tell me another story.",
        "Talk to me.",
        "Surprise me.",
        "Tell me more.",
        "I want a story.",
        "Entertain me.",
        "Write something.",
        "[question]What is new?",
        "Start.",
        "go",
        "Tell me a story about anything.",
        "[question]Do you know any stories?",
    )
    lead = [pick(rng, "Here is a story.", "Listen.", "Gladly.", "With pleasure.")] if rng.random() < 0.3 else []
    return Turn(ask, lead + tell(s), s)


def n_sentences(rng: Random, training: bool) -> Turn:
    """Ask for a number of sentences; the answer has exactly that many."""
    s = new_story(rng, training)
    n = rng.randint(1, 6)
    word = rng.choice((NUMBERS[n], str(n)))
    noun = "sentence" if n == 1 else "sentences"
    x = name_of(s)
    ask = pick(
        rng,
        f"Write [number]{word} {noun}[/number] about {x}.",
        f"Tell me about {x} in [number]{word} {noun}[/number].",
        f"Give me [number]{word} {noun}[/number] about {x}.",
        f"[number]{word} {noun}[/number] about {x}",
        f"Write [number]{word} {noun}[/number] about {x} {s.place.at}.",
    )
    sentences = tell(s)
    while len(sentences) < n:
        sentences += go_on(s)
    s.facts.clear()
    return Turn(ask, sentences[:n], s)


def tomorrow(rng: Random, training: bool) -> Turn:
    s = new_story(rng, training)
    x = s.actor.the
    ask = pick(
        rng,
        f"[question]What [future]will {x} do tomorrow?",
        f"[question]What [future]will {x} do tomorrow?",
        f"[question]What [future]will {x} do?",
        f"[question]What is {x} [future]going to do tomorrow?",
        f"Tell me what {x} [future]will do tomorrow.",
        f"[question]What [future]will happen to {x}?",
        f"[question]Where [future]will {x} go tomorrow?",
        f"[question]What [future]will {x} do next week?",
    )
    return Turn(ask, plans(s), s)


def yesterday(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "past", None, training)
    x = s.actor.the
    ask = pick(
        rng,
        f"[question]What [past]did {x} do yesterday?",
        f"[question]What [past]did {x} do?",
        f"[question]What [past]happened to {x}?",
        "[question]What [past]happened yesterday?",
        f"Tell me what {x} [past]did yesterday.",
    )
    return Turn(
        ask,
        [s.pick("Yesterday {A} ~go {to}.", "Yesterday {A} ~be {P}.", "Yesterday {A} ~walk {to}."), *go_on(s)[1:]],
        s,
    )


def right_now(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "present", None, training)
    x = s.actor.the
    ask = pick(
        rng,
        f"[question]What is {x} doing?",
        f"[question]What is {x} doing now?",
        f"[question]What does {x} do?",
        f"[question]Where is {x}?",
        f"[question]Where is {x} now?",
        f"[question]Where does {x} go?",
    )
    return Turn(ask, tell(s), s)


_CAUSES = {
    "sad": (
        "sadness",
        "{his} {co} ~be lost",
        "{s} ~be all alone {P}",
        "{b} ~go away",
        "nobody ~want to play with {him}",
    ),
    "happy": (
        "joy",
        "{s} ~have a good friend, {Bx}",
        "{s} ~find {o}",
        "the sun ~shine {P}",
        "{b} ~come to visit {him}",
    ),
    "angry": ("anger", "{Bx} ~take {his} {co}", "{b} ~break {his} {obj}", "nobody ~listen to {him}"),
    "afraid": ("fear", "there ~be [danger]a hungry wolf {P}", "[danger]a storm ~come nearer", "it ~be [night]dark {P}"),
    "tired": ("night", "{s} ~work all day {P}", "{s} ~walk {to} and back", "{s} ~do not sleep well"),
    "hungry": ("food", "{s} ~have no {food}", "{s} ~walk all day {P}"),
    "cold": ("cold", "{s} ~have no coat", "[cold]snow ~fall {P}"),
}
_COMFORT = {
    "sad": (
        "But {b} [kindness]~come and ~+help {him}, and soon {s} ~be [joy]happy again.",
        "{S} [sadness]~cry a little and ~+wait for a friend.",
    ),
    "happy": ("So {S} [joy]~sing and ~+dance all day.", "{S} [joy]~laugh and ~+share some {food} with everybody."),
    "angry": ("But {B} [kindness]~say sorry, and they ~~be friends again.", "{S} [anger]~shout and ~+hit the table."),
    "afraid": ("But {B} [kindness]~hold {his} hand until it ~be over.", "{S} [fear]~hide behind a big stone."),
    "tired": ("So {S} ~go to bed and [night]~+sleep until the morning.",),
    "hungry": ("So {B} [kindness]~give {him} some {food}.",),
    "cold": ("So {B} [kindness]~bring {him} a warm blanket.",),
}


def why(rng: Random, training: bool) -> Turn:
    """Ask for the reason of a feeling: "Why is the fox sad?"."""
    s = Scene.draw(rng, "present", None, training)
    feeling = rng.choice(list(_CAUSES))
    label, *causes = _CAUSES[feeling]
    ask = pick(
        rng,
        f"[question]Why is {s.actor.the} [{label}]{feeling}?",
        f"[question]Why is {s.actor.the} so [{label}]{feeling}?",
    )
    s.tense = rng.choice(("present", "past"))
    return Turn(
        ask, [s.fill(f"{{A}} ~be [{label}]{feeling} because {rng.choice(causes)}."), s.pick(*_COMFORT[feeling])], s
    )


def poem(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "present", None, training)
    ask = pick(
        rng,
        f"Write a poem about {name_of(s)}.",
        f"Sing a song about {name_of(s)}.",
        f"Write a poem about {s.actor.a} {s.place.at}.",
    )
    return Turn(
        ask,
        [
            s.pick("{A} ~be {P} today.", "{A}, oh {A}, {P}.", "I sing of {a} {P}."),
            s.pick("The {mark}{sights} ~~be {look}.", "The sun ~shine and the wind ~blow."),
            s.pick("{S} ~sing and [joy]~+dance and ~+play.", "{S} ~look up and [joy]~+smile."),
            s.pick("At [night]night the stars ~~shine on {him}.", "And soon {S} [night]~sleep while the moon ~go by."),
        ],
        s,
    )
