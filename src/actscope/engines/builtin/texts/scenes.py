"""Scenes: the actor, place, friend and things from which templates are filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from actscope.engines.builtin.texts.lexicon import (
    ACTORS,
    ADJECTIVES,
    COLOURS,
    DANGEROUS,
    FOODS,
    NAMED,
    NUMBERS,
    OBJECTS,
    PLACES,
    STRANGERS,
    THINGS,
    Actor,
    Place,
    article,
    held_out,
    invented,
    plural,
)
from actscope.engines.builtin.texts.marks import capital
from actscope.engines.builtin.texts.verbs import conjugate

_PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her"), "it": ("it", "it", "its")}
_OBJECT_PRONOUN = {"he": "him", "she": "her", "it": "it"}
_ANY_PLACES = ("the {} house", "the {} shop", "the {} room", "the {} street", "the {} garden")


def stranger(rng: Random) -> Actor:
    """Draw a character outside the lexicon: a known English noun or an invented one, sometimes of two words."""
    noun = invented(rng) if rng.random() < 0.5 else rng.choice(STRANGERS)
    if rng.random() < 0.1:
        noun = f"{rng.choice((*ADJECTIVES[:6], *COLOURS[:6]))} {noun}"
    return Actor(noun, "unknown", rng.choice(("it", "it", "he", "she")))


def some_actor(rng: Random) -> Actor:
    """Draw a character: mostly of the lexicon, sometimes a named child or a stranger."""
    draw = rng.random()
    if draw < 0.1:
        return rng.choice(NAMED)
    return stranger(rng) if draw < 0.27 else rng.choice(ACTORS)


def some_place(rng: Random) -> Place:
    """Draw a place: mostly of the lexicon, sometimes an unknown one."""
    if rng.random() < 0.9:
        return rng.choice(PLACES)
    noun = invented(rng) if rng.random() < 0.5 else rng.choice(STRANGERS)
    if rng.random() < 0.3:
        noun = rng.choice(_ANY_PLACES).format(noun)[4:]
    return Place(rng.choice(("in", "at", "on", "near", "under", "behind")), "the " + noun, ("trees", "old and quiet"))


@dataclass
class Scene:
    """The choices of a text. `facts` are the facts that its sentences stated, for later questions."""

    rng: Random
    actor: Actor
    place: Place
    tense: str = "past"
    friend: Actor = field(init=False)
    object: str = field(init=False)
    colour: str = field(init=False)
    food: str = field(init=False)
    count: int = field(init=False)
    things: str = field(init=False)
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng
        gender = self.actor.gender
        self.gender = rng.choice(("he", "she")) if gender == "any" else gender
        others = [actor for actor in ACTORS if actor is not self.actor and actor.noun not in DANGEROUS]
        self.friend = rng.choice(others)
        self.friend_gender = rng.choice(("he", "she")) if self.friend.gender == "any" else self.friend.gender
        self.object, self.colour, self.food = rng.choice(OBJECTS), rng.choice(COLOURS), rng.choice(FOODS)
        self.count, self.things = rng.randint(2, 9), plural(rng.choice(THINGS))
        self.adjective = rng.choice(ADJECTIVES)
        self.friend_known = False

    @classmethod
    def draw(cls, rng: Random, tense: str = "past", actor: Actor | None = None, training: bool = True) -> Scene:
        """Draw a scene. For training it never has a held-out pair; otherwise it has one half the time."""
        want_held_out = not training and rng.random() < 0.5
        for _ in range(100):
            who, where = actor or some_actor(rng), some_place(rng)
            if held_out(who, where) == want_held_out:
                break
        return cls(rng, who, where, tense)

    def pick(self, *templates: str) -> str:
        """Fill one of the templates, drawn at random."""
        return self.fill(self.rng.choice(templates))

    def fill(self, template: str) -> str:
        """Fill a template: replace its names, put its verbs into the scene's tense, and capitalize its first letter."""
        return capital(self.clause(template))

    def clause(self, template: str) -> str:
        """Fill a part of a sentence like `fill`, without capitalizing. The friend is "a bear" first, then "the bear"."""
        filled = conjugate(template.format_map(self._words()), self.tense)
        self.friend_known |= any(slot in template for slot in ("{b}", "{B}", "{Bx}"))
        return filled

    def _words(self) -> dict[str, str]:
        actor, friend = self.actor, self.friend
        animal = "[animal]" if actor.kind == "animal" else ""
        friend_plain = friend.the_plain if self.friend_known else friend.a_plain
        friend_named = friend.the if self.friend_known else friend.a
        he, him, his = _PRONOUNS[self.gender]
        number = NUMBERS[self.count]
        old = actor.proper or " " in actor.noun
        an_adjective = f"{article(self.adjective)} {self.adjective} {animal}{actor.noun}"
        return {
            "A": actor.the, "a": actor.a, "adj_a": actor.a if old else an_adjective, "X": actor.the_plain,
            "S": animal + he, "s": he, "him": him, "his": his, "noun": actor.noun,
            "B": friend_named, "Bx": friend_plain, "b": friend_plain, "b_him": _OBJECT_PRONOUN[self.friend_gender],
            "P": self.place.at, "to": self.place.to, "place": self.place.phrase,
            "sights": self.place.sights[0], "look": self.place.sights[1],
            "mark": f"[{self.place.mark}]" if self.place.mark else "",
            "o": f"{article(self.colour)} {self.colour} {self.object}", "the_o": f"the {self.colour} {self.object}",
            "co": f"{self.colour} {self.object}", "obj": self.object, "food": "[food]" + self.food,
            "n": f"[number]{number} {self.things}[/number]", "number": number, "things": self.things,
            "less": f"[number]{NUMBERS[self.count - 1]}[/number]", **self.facts,
        }  # fmt: skip
