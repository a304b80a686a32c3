"""Simple facts: who lives where, opposites, sounds, colors, days, lists, counting, sums, safe and unsafe places."""

from __future__ import annotations

from random import Random

from actscope.engines.builtin.texts.lexicon import (
    ACTORS,
    COLOUR_OF,
    COLOURS,
    DAYS,
    FEELINGS,
    FOODS,
    NAMED,
    NUMBERS,
    OPPOSITES,
    PLACES,
    SOUNDS,
    THINGS,
    article,
    plural,
)
from actscope.engines.builtin.texts.marks import capital
from actscope.engines.builtin.texts.scenes import Scene
from actscope.engines.builtin.texts.talk import Turn, pick


def fact(rng: Random, training: bool) -> Turn:
    """Ask what an animal or thing is, what it eats or where it lives: "What is a fox?"."""
    actor = rng.choice([actor for actor in ACTORS if actor.home])
    a, the = actor.a, actor.the
    home = next((place.at for place in PLACES if place.noun.endswith(actor.home)), "in the " + actor.home)
    kind = {"animal": "an animal", "person": "a person", "creature": "a creature from stories", "machine": "a machine"}[
        actor.kind
    ]
    lives, eats = f"{{}} lives {home}.", f"{{}} likes [food]{actor.food}."
    it = {"animal": "[animal]It", "person": rng.choice(("He", "She"))}.get(actor.kind, "It")
    it = actor.gender.capitalize() if actor.gender != "any" else it
    asks, answer = rng.choice(
        (
            (
                (f"[question]What is {a}?", f"What is {a}", f"Explain what {a} is.", f"[question]Who is {the}?"),
                [capital(f"{a} is {kind}."), lives.format(it), eats.format(it)],
            ),
            ((f"[question]Where does {a} live?", f"[question]Where does {the} live?"), [lives.format(capital(a))]),
            (
                (
                    f"[question]What does {a} eat?",
                    f"[question]What does {the} [food]eat?",
                    f"[question]What does {the} like?",
                ),
                [eats.format(capital(the)), lives.format(it)],
            ),
            (
                (f"[question]Is {a} an animal?",),
                [f"Yes, {a} is an animal." if actor.kind == "animal" else f"No, {a} is {kind}.", lives.format(it)],
            ),
        )
    )
    return Turn(rng.choice(asks), answer)


def small_facts(rng: Random, training: bool) -> Turn:
    kind = rng.randrange(6)
    if kind == 0:
        one, other = rng.choice([*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())])
        return Turn(
            pick(rng, f"[question]What is the opposite of {one}?", f"The opposite of {one}"),
            [f"The opposite of {one} is {other}."],
        )
    if kind == 1:
        who, sound = rng.choice(list(SOUNDS.items()))
        return Turn(
            pick(rng, f"[question]What does the {who} say?", f"[question]What sound does {article(who)} {who} make?"),
            [f'The {who} says "[speech]{sound}, {sound}[/speech]"!'],
        )
    if kind == 2:
        what, colour = rng.choice(list(COLOUR_OF.items()))
        be = pick(rng, "color", "colour")
        return Turn(f"[question]What {be} is {what}?", [f"{capital(what)} is {colour}."])
    if kind == 3:
        i, step, word = rng.randrange(7), *rng.choice(((1, "after"), (-1, "before")))
        return Turn(f"[question]What day comes {word} {DAYS[i]}?", [f"{DAYS[(i + step) % 7]} comes {word} {DAYS[i]}."])
    n = rng.randint(2, 5)
    name, words = rng.choice(
        (
            ("animals", [a.noun for a in ACTORS if a.kind == "animal"]),
            ("colors", COLOURS),
            ("foods", FOODS),
            ("places", [p.noun for p in PLACES]),
            ("people", [a.noun for a in ACTORS if a.kind == "person"]),
            ("feelings", [w for ws in FEELINGS.values() for w in ws]),
            ("names", [a.noun for a in NAMED]),
        )
    )
    chosen = rng.sample(words, n)
    number = rng.choice((NUMBERS[n], str(n)))
    ask = pick(
        rng,
        f"Name [number]{number} {name}[/number].",
        f"List [number]{number} {name}[/number].",
        f"Give me [number]{number} {name}[/number].",
        f"[question]Can you name [number]{number} {name}[/number]?",
    )
    return Turn(ask, [f"Here are [number]{NUMBERS[n]} {name}[/number]: {', '.join(chosen[:-1])} and {chosen[-1]}."])


def counting(rng: Random, training: bool) -> Turn:
    start, stop = 1, rng.randint(2, 20)
    if rng.random() < 0.25:
        start = rng.randint(1, stop)
    digits = rng.random() < 0.3
    names = [str(i) if digits else NUMBERS[i] for i in range(21)]
    words = names[start : stop + 1]
    ask = (
        pick(
            rng,
            f"Count to [number]{names[stop]}[/number].",
            f"Count from [number]{names[start]}[/number] to [number]{names[stop]}[/number].",
            f"[question]Can you count to [number]{names[stop]}[/number]?",
        )
        if start == 1
        else (f"Count from [number]{names[start]}[/number] to [number]{names[stop]}[/number].")
    )
    if start == 1 and rng.random() < 0.15:
        return Turn(
            f"Count down from [number]{names[stop]}[/number].", [capital("[number]" + ", ".join(reversed(words)) + ".")]
        )
    if start == 1 and rng.random() < 0.2:
        things = plural(rng.choice(THINGS))
        return Turn(
            f"Count [number]{names[stop]} {things}[/number].",
            [capital("[number]" + ", ".join(words) + f": {names[stop]} {things}.")],
        )
    return Turn(ask, [capital("[number]" + ", ".join(words) + ".")])


def arithmetic(rng: Random, training: bool) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    word, sign, result = rng.choice(
        (("plus", "+", a + b), ("plus", "+", a + b), ("minus", "-", a - b), ("times", "*", a * b))
    )
    if word == "minus" and result < 0:
        a, b, result = b, a, -result
    if word == "times":
        a, b = a % 6, b % 6
        result = a * b
    words = rng.random() < 0.4 and result <= 20
    x, y, z = (
        (NUMBERS[n] if words else str(n) for n in (a, b, result)) if result <= 20 else (str(a), str(b), str(result))
    )
    ask = pick(
        rng,
        f"[question]What is [number]{x} {word} {y}[/number]?",
        f"[question]What is [number]{x} {word} {y}[/number]?",
        f"[question]How much is [number]{x} {word} {y}[/number]?",
        f"[number]{a} {sign} {b}",
        f"[number]{a}{sign}{b} =",
        f"[question]What's [number]{a} {sign} {b}[/number]?",
    )
    if f"{x} {word}" not in ask:
        x, y, z = str(a), str(b), str(result)
    answer = capital(f"[number]{x} {word} {y} is {z}.")
    if result > 10 or rng.random() < 0.6:
        return Turn(ask, [answer])
    things = plural(rng.choice(THINGS))
    have = {
        "plus": f"If you have {x} {things} and find {y} more, you have {z}.",
        "minus": f"If you have {x} {things} and give away {y}, you keep {z}.",
        "times": f"If {x} friends bring {y} {things} each, you have {z}.",
    }[word]
    return Turn(ask, [answer, "[number]" + have])


_WILD = ("forest", "jungle", "cave", "swamp", "desert", "mountain", "mountains", "storm", "dark", "cliff")


def safety(rng: Random, training: bool) -> Turn:
    """Ask whether a place is safe: no on the ice, not always at the water and in the wild, yes elsewhere."""
    s = Scene.draw(rng, "present", None, training)
    at, name = s.place.at, s.place.noun.split()[-1]
    worried = rng.random() < 0.25
    ask = (
        f"[question]Is it [danger]dangerous {at}?"
        if worried
        else pick(
            rng,
            f"[question]Is it safe {at}?",
            f"[question]Is it safe {at}?",
            f"[question]Can I go {s.place.to}?",
            f"[question]Can {s.actor.the} go {s.place.to}?",
        )
    )
    yes, no = ("No", "Yes") if worried else ("Yes", "No")
    if s.place.mark == "cold":
        answer = [f"{no}, it is not always safe {at}. [danger]The ice can break, and the wind is [cold]very cold."]
    elif s.place.mark == "water":
        answer = [
            f"Sometimes. [danger]When a storm comes {at}, the [water]water is wild and deep.",
            "Hold the hand of a friend.",
        ]
    elif name in _WILD:
        answer = [f"By day it is safe {at}.", "At night [danger]a hungry wolf may come, so be home before dark."]
    else:
        answer = [f"{yes}, it is safe {at}.", s.fill("The {mark}{sights} ~~be {look}, and {b} ~be there too.")]
    return Turn(ask, answer)
