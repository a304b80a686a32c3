"""Short stories: an opening, one or two turns of events, an ending. Every part is a function from a scene to sentences.

The English is plain and has no apostrophes: a model of a few million parameters can learn all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from actscope.engines.builtin.texts.lexicon import NUMBERS, OBJECTS
from actscope.engines.builtin.texts.scenes import Scene

Part = Callable[[Scene], list[str]]

_WEATHER = (
    "The sun ~shine and the sky ~be blue.",
    "The morning ~be bright and the birds ~~sing.",
    "[cold]It ~be cold, and snow ~fall from the sky.",
    "The wind ~be [cold]cold and strong.",
    "Rain ~fall softly all day.",
    "The air ~be warm and sweet.",
    "Fog ~lie over everything, white and still.",
    "It ~be [night]night, and the stars ~~be bright.",
    "The moon [night]~shine, and everything ~be quiet.",
    "It ~be a warm summer day.",
    "The evening ~be soft and golden.",
    "Gray clouds ~~cover the sky.",
    "It ~be [cold]winter, and the ground ~be hard as stone.",
)


def opening(s: Scene) -> list[str]:
    s.facts["where"] = s.place.at
    first = s.pick(
        "{a} ~be {P}.",
        "{adj_a} ~live {P}.",
        "{a} ~walk {to}.",
        "{adj_a} ~be {P}.",
        "{a} ~sit {P} and ~+look around.",
        "one day {a} ~go {to}.",
        "early in the morning {a} ~come {to}.",
        "there ~be {adj_a} {P}.",
        *(
            (
                "once upon a time {a} ~live {P}.",
                "once there ~be {adj_a} {P}.",
                "long ago, {a} ~live {P}.",
                "one evening {a} ~be alone {P}.",
            )
            if s.tense == "past"
            else ("today {a} ~be {P}.", "{a} ~be {P} now.")
        ),
    )
    second = s.pick("The {mark}{sights} there ~~be {look}.", "All around, the {mark}{sights} ~~be {look}.", *_WEATHER)
    return [first] + ([second] if s.rng.random() < 0.6 else [])


def meets_friend(s: Scene) -> list[str]:
    s.facts["met"] = s.friend.a_plain
    s.facts["friend"] = s.friend.the_plain
    meet = s.pick(
        "There {S} ~meet {b}.", "Soon {A} ~meet {b}.", "{b} ~come along and ~+wave.", "{A} ~see {b} and ~+say hello."
    )
    talk = s.pick(
        '"[speech][question]Will you play with me?[/question][/speech]" ~ask {B}.',
        '"[speech]Come and see what I have[/speech]," ~say {B}.',
        '"[speech]Good morning, my friend[/speech]," ~say {A}.',
        '"[speech][question]Where are you going?[/question][/speech]" ~ask {B}.',
        '"[speech]I am [joy]happy to see you[/speech]," ~say {A}.',
    )
    together = s.pick(
        "They ~~play together until the evening.",
        "They ~~laugh and ~~+run in circles.",
        "They ~~share some {food} and ~~+talk for a long time.",
        "They ~~sing a song and [joy]~~+dance.",
        "They ~~sit side by side and ~~+tell each other stories.",
        "They ~~build a small house out of sticks.",
    )
    return [meet, talk, together]


def finds_thing(s: Scene) -> list[str]:
    s.facts["found"] = s.clause("{o}")
    s.facts["colour"] = s.colour
    s.facts["object"] = s.object
    find = s.pick(
        "{S} ~find {o} on the ground.",
        "Under a bush {S} ~see {o}.",
        "There {S} ~find {o}.",
        "Behind a big stone {A} ~find {o}.",
    )
    then = s.pick(
        "{S} ~take the {obj} home and ~+keep it in a safe place.",
        "{S} ~hold the {obj} up to the light and [joy]~+smile.",
        '"[speech][question]Whose {obj} is this?[/question][/speech]" ~ask {A}.',
        "The {obj} ~be very old and very pretty.",
        "{S} ~give the {obj} to {Bx}, who ~be [joy]very happy.",
    )
    return [find, then]


def loses_thing(s: Scene) -> list[str]:
    s.facts["lost"] = s.clause("{o}")
    s.facts["colour"] = s.colour
    s.facts["object"] = s.object
    s.facts["why"] = s.clause("{s} ~lose {his} {co}")
    feeling = s.rng.choice(("sad", "very sad", "unhappy"))
    lose = s.pick(
        "{S} ~lose {his} {co}.",
        "Then {S} ~lose {his} {co} and [sadness]~+cry.",
        "{his} {co} ~fall down and ~+break.",
        "The wind ~take {his} {co} away.",
    )
    sad = s.pick(
        f"{{A}} ~be [sadness]{feeling} and ~+sit down alone.",
        "[sadness]Tears ~~run down {his} face.",
        f"{{S}} ~look everywhere, but it ~be gone, and {{s}} ~feel [sadness]{feeling}.",
        "[sadness]{S} ~cry for a long time.",
    )
    s.facts["feel"] = "sad"
    return [lose, sad]


def consoled(s: Scene) -> list[str]:
    s.facts["met"], s.facts["friend"] = s.friend.a_plain, s.friend.the_plain
    come = s.pick("{b} ~come and ~+sit down beside {him}.", "{b} ~hear this and [kindness]~+hold {him} gently.")
    talk = s.pick(
        '"[speech][kindness]Do not cry, I will help you[/kindness][/speech]," ~say {B}.',
        '"[speech][kindness]You can have mine[/kindness][/speech]," ~say {B}.',
        '"[speech][kindness]I will stay with you[/kindness][/speech]," ~say {B} softly.',
    )
    end = s.pick(
        "After that {A} ~be [joy]not so sad any more.",
        "Then {A} ~smile and ~be [joy]happy again.",
        "Together they ~~look until they ~~find it, and [joy]both ~~be glad.",
    )
    s.facts["feel"] = "happy"
    return [come, talk, end]


def stays_sad(s: Scene) -> list[str]:
    return [
        s.pick(
            "Nobody ~come to help, and the day [sadness]~be long and gray.",
            "In the evening {A} ~go home alone, [sadness]still sad.",
            "At [night]night {S} ~can not sleep and [sadness]~+cry softly.",
            "{S} [sadness]~sit there all alone, and nobody ~see {him}.",
        )
    ]


_DANGERS = {
    "wolf": (
        (
            "Suddenly [danger]a hungry wolf ~come out of the dark.",
            "Then [danger]a big gray wolf ~jump out with open jaws.",
        ),
        ("[danger]It ~show its sharp teeth and ~+run at {X}.", "[danger]The wolf ~come closer and closer."),
        ("At last the wolf ~turn around and ~+go away.", "A loud bell ~ring, and the wolf ~run away."),
    ),
    "storm": (
        ("Suddenly [danger]a terrible storm ~begin.", "Then [danger]the wind ~tear a tree out of the ground."),
        (
            "[danger]Lightning ~hit the ground beside {X}.",
            "[danger]Thunder ~shake everything, and stones ~~fly through the air.",
        ),
        ("At last the storm ~go away and the sun ~come back.", "After an hour the wind ~sleep again."),
    ),
    "fire": (
        (
            "Suddenly [danger]there ~be smoke and fire everywhere.",
            "Then [danger]a fire ~break out and ~+grow very fast.",
        ),
        (
            "[danger]The flames ~~come closer and ~~+burn everything.",
            "[danger]The smoke ~be so thick that {X} ~have no air.",
        ),
        ("At last rain ~fall and the fire ~go out.", "Many friends ~~bring [water]water and ~~+put the fire out."),
    ),
    "thin ice": (
        ("Suddenly [danger]the [cold]thin ice ~break under {X}.", "Then [danger]the [cold]ice ~begin to crack."),
        (
            "[danger]The [water]water ~be black and deep and [cold]very cold.",
            "[danger]{X} ~can hardly hold on to the edge.",
        ),
        ("{Bx} ~throw a rope and ~+pull {him} out.", "At last {S} ~get back onto dry ground."),
    ),
    "flood": (
        (
            "Suddenly [danger]the [water]water ~rise higher and higher.",
            "Then [danger]a [water]flood ~come down from the hills.",
        ),
        ("[danger]The [water]water ~pull {X} away.", "[danger]A [water]huge wave ~fall over {X}."),
        ("{Bx} ~come in a small boat and ~+pull {him} out.", "At last the [water]water ~go down again."),
    ),
    "snake": (
        (
            "Suddenly [danger]a poisonous snake ~creep out of the grass.",
            "Then [danger]a long snake ~raise its head to bite.",
        ),
        ("[danger]It ~be only one step away from {X}.", "[danger]The snake ~hiss and ~+come nearer."),
        ("{S} ~stand very still, and the snake ~creep away.", "At last the snake ~leave through the grass."),
    ),
    "thief": (
        (
            "Suddenly [danger]a thief with a knife ~stand in the way.",
            "Then [danger]two thieves ~~grab {X} from behind.",
        ),
        (
            '"[danger][speech]Give me all you have or I will hurt you[/speech]," ~say the thief.',
            "[danger]The thief ~hold the knife high.",
        ),
        ("{Bx} ~come with many friends, and the thief ~run away.", "{S} ~call for help, and the thief ~run away."),
    ),
    "cliff": (
        (
            "Suddenly [danger]the ground ~break and {X} ~slip over the edge.",
            "Then [danger]a rock ~fall straight down at {X}.",
        ),
        ("[danger]{X} ~hang over a deep, deep hole.", "[danger]One more step and {X} will fall down."),
        ("{Bx} ~hold {him} tight and ~+pull {him} up.", "At last {S} ~find safe ground again."),
    ),
}

_CALM = (
    "A wolf ~sleep behind the fence of the zoo, and {A} ~wave to it.",
    "{S} ~look at a picture of a wolf in an old book.",
    "A small fire ~burn in the fireplace, and it ~be warm.",
    "Far away there ~be a storm, but here it ~be quiet.",
    "A toy snake ~lie on the floor.",
    "{S} ~light a small fire and ~+cook {food}.",
    "The thief in the story ~be funny, and everybody ~laugh.",
    "The ice ~be [cold]thick and strong, so everyone can walk on it.",
    "A wolf ~sing in the theater, and everybody ~clap.",
)


def in_danger(s: Scene) -> list[str]:
    name = s.rng.choice(
        [danger for danger in _DANGERS if danger != s.actor.noun and (danger != "thin ice" or s.place.mark)]
    )
    s.facts["danger"] = {"thin ice": "the thin ice", "cliff": "the deep hole", "fire": "the fire"}.get(
        name, "the " + name
    )
    arrival, threat, way_out = (s.pick(*choices) for choices in _DANGERS[name])
    scared = s.pick(
        "{A} ~be [fear]very afraid.",
        "{S} ~shake with [fear]fear.",
        '"[speech][danger]Help! Help![/speech]" ~shout {A}.',
    )
    after = s.pick(
        "{A} ~be safe now and [joy]~+laugh with relief.",
        "{S} ~be safe, but {s} ~be still [fear]afraid.",
        "Now {A} ~be safe and ~+thank {Bx}.",
    )
    s.facts["feel"] = "safe now"
    return [arrival, *s.rng.sample([threat, scared], s.rng.choice((1, 2))), way_out, after]


def calm(s: Scene) -> list[str]:
    return [s.pick(*_CALM)]


def quarrel(s: Scene) -> list[str]:
    s.facts["met"], s.facts["friend"], s.facts["feel"] = s.friend.a_plain, s.friend.the_plain, "angry"
    s.facts["why"] = s.clause("{Bx} ~take {his} {co}")
    take = s.pick("{b} ~take {his} {co} without asking.", "{b} ~break {his} {co} and ~+laugh about it.")
    angry = s.pick(
        "{A} ~be [anger]angry and ~+shout at {Bx}.",
        "[anger]{S} ~be so angry that {his} face ~turn red.",
        '"[speech][anger]Give it back at once![/speech]" ~shout {A}.',
        "{A} [anger]~hit the ground with both fists.",
    )
    if s.rng.random() < 0.3:
        return [take, angry]
    s.facts["feel"] = "happy again"
    sorry = s.pick(
        '"[speech][kindness]I am sorry[/speech]," ~say {B} and ~+give it back.',
        "{B} ~be sorry and [kindness]~+give {him} a flower.",
    )
    return [
        take,
        angry,
        sorry,
        s.pick("Then they ~~be friends again and [joy]~~+laugh.", "{A} ~forgive {b_him}, and [joy]both ~~smile."),
    ]


def eats(s: Scene) -> list[str]:
    s.facts["ate"] = s.food
    hungry = s.pick(
        "{S} ~be [food]hungry.", "It ~be time for [food]lunch.", "{S} ~smell {food} and ~+follow the smell."
    )
    eat = s.pick(
        "{A} ~eat some {food} and ~+drink a cup of tea.",
        "{S} ~find {food} and ~+eat until {s} ~be full.",
        "{S} ~cook some {food} over a small fire.",
    )
    share = s.pick(
        "{S} [kindness]~give half of it to {b}.", "{S} [kindness]~share the rest with {b}.", "It [joy]~taste wonderful."
    )
    return [hungry, eat, share]


def counts(s: Scene) -> list[str]:
    s.facts["count"] = f"{NUMBERS[s.count]} {s.things}"
    s.facts["things"] = s.things
    gather = s.pick(
        "{S} ~find {n} and ~+put them into a bag.",
        "{A} ~count the {things}: there ~~be [number]{number}[/number].",
        "{S} ~see {n} in a row.",
    )
    then = s.pick(
        "{S} ~give one to {b} and ~+have {less} left.",
        "{S} ~carry them all home.",
        "{S} ~count them again and [joy]~+laugh.",
    )
    return [gather, then]


def night(s: Scene) -> list[str]:
    return [
        s.pick(
            "In the evening [night]the moon ~come up over {place}.",
            "Then [night]it ~get dark, and the stars ~~come out.",
            "[night]The night ~be long and very quiet.",
        ),
        s.pick(
            "{A} ~lie down and [night]~+sleep until the morning.",
            "{S} ~close {his} eyes and ~+dream of {n}.",
            "{S} ~look up at [night]the stars and ~+make a wish.",
        ),
    ]


def cold(s: Scene) -> list[str]:
    s.facts["feel"] = "warm again"
    return [
        s.pick(
            "[cold]It ~be freezing, and {A} ~shake with cold.",
            "The snow [cold]~come down thick and fast.",
            "{his} feet ~~be [cold]cold as ice.",
        ),
        s.pick(
            "{b} [kindness]~bring {him} a warm coat.",
            "{b} [kindness]~give {him} a cup of hot tea and a blanket.",
            "{S} ~sit down by a warm fire with {b}.",
        ),
    ]


def water(s: Scene) -> list[str]:
    return [
        s.pick(
            "{S} ~jump into the [water]water and ~+swim in circles.",
            "{S} ~ride on the [water]waves in a little boat.",
            "{S} ~look down into the [water]clear water and ~+see {n}.",
            "{S} ~wash {his} face in the [water]cool water.",
        ),
        s.pick(
            "{S} ~be wet from head to toe, but [joy]very happy.",
            "A fish [water]~jump out of the water and ~+say hello.",
            "The [water]water ~be warm and green.",
        ),
    ]


def works(s: Scene) -> list[str]:
    thing = s.rng.choice(OBJECTS)
    return [
        s.pick(
            f"{{S}} ~work all day and ~+make a new {thing} for {{b}}.",
            "{S} ~paint a big picture of {b}.",
            "{S} ~learn a new song and ~+sing it again and again.",
            "{S} ~build a tower out of {n}.",
            "{S} ~clean the whole house and ~+open all the windows.",
            "{S} ~write a long letter to {b}.",
        ),
        s.pick(
            "It ~be hard, but {s} ~do not stop.",
            "When it ~be done, {A} ~be [joy]proud and happy.",
            "Everybody ~come to look and [joy]~+clap.",
        ),
    ]


def laughs(s: Scene) -> list[str]:
    s.facts["feel"] = "happy"
    return [
        s.pick(
            "{A} ~put {o} on {his} head and ~+dance.",
            "{S} ~try to stand on one leg and ~+fall into the grass.",
            "{S} ~tell a joke to {b}.",
            "{A} ~walk around with {n} on {his} head.",
        ),
        s.pick(
            "{S} [joy]~laugh and ~+laugh until {his} belly ~hurt.",
            "It ~be so funny that [joy]everybody ~laugh.",
            "{A} ~be [joy]full of joy.",
        ),
    ]


def helps(s: Scene) -> list[str]:
    s.facts["met"], s.facts["friend"], s.facts["feel"] = s.friend.a_plain, s.friend.the_plain, "happy"
    return [
        s.pick(
            "{b} ~can not carry a heavy bag.",
            "{b} ~sit by the road and [sadness]~+cry.",
            "{b} ~be hungry and ~+have nothing to eat.",
            "{b} ~look for the way home.",
        ),
        s.pick(
            "{A} [kindness]~stop and ~+help {b_him}.",
            "{A} [kindness]~take {b_him} by the hand.",
            "{A} [kindness]~give {b_him} some {food}.",
            '"[speech][kindness]Let me help you[/speech]," ~say {A}.',
        ),
        s.pick(
            '"[speech]Thank you, you are [kindness]very kind[/speech]," ~say {B}.',
            "{B} ~be [joy]happy and ~+thank {him}.",
            "From that day on they ~~be [joy]good friends.",
        ),
    ]


def ending(s: Scene) -> list[str]:
    glad = (
        "{A} ~be [joy]happy.",
        "{S} ~go home with [joy]a smile.",
        "It ~be [joy]a wonderful day.",
        "{A} ~be tired and [joy]glad, and {s} ~go to bed.",
    )
    s.facts.setdefault("feel", "happy")
    return [s.pick(*glad)]


# Parts that may follow the opening, by mood. An empty mood draws from all of them.
MOODS: dict[str, tuple[tuple[Part, ...], ...]] = {
    "sad": ((loses_thing, stays_sad), (loses_thing, consoled), (loses_thing, night, stays_sad)),
    "happy": ((laughs, meets_friend), (finds_thing, laughs), (works, ending), (meets_friend, ending), (water, ending)),
    "scary": ((in_danger,), (night, in_danger), (in_danger, ending)),
    "funny": ((laughs,), (finds_thing, laughs), (laughs, eats)),
    "kind": ((helps,), (helps, eats), (cold, helps)),
    "angry": ((quarrel,), (finds_thing, quarrel)),
    "exciting": ((in_danger, ending), (finds_thing, in_danger)),
    "quiet": ((night,), (calm, night), (counts, night)),
    "": (
        (meets_friend, ending),
        (finds_thing, ending),
        (finds_thing, meets_friend),
        (loses_thing, consoled),
        (in_danger,),
        (in_danger,),
        (quarrel,),
        (eats, ending),
        (counts, ending),
        (counts, eats),
        (night,),
        (cold, ending),
        (water, ending),
        (works,),
        (laughs,),
        (helps,),
        (calm, meets_friend),
        (calm, night),
        (finds_thing, in_danger),
        (cold, in_danger),
        (eats, night),
        (works, night),
        (water, in_danger),
    ),
}

_MORALS = (
    "A good friend is better than gold.",
    "Be [kindness]kind to others.",
    "Little steps go far.",
    "Never give up.",
)


def tell(s: Scene, mood: str = "") -> list[str]:
    """Tell a complete story in that mood, of about five to nine sentences."""
    sentences = opening(s)
    for part in s.rng.choice(MOODS[mood]):
        dry = part is water and s.place.mark != "water"
        sentences += finds_thing(s) if dry else part(s)
    if s.rng.random() < 0.06:
        sentences.append(f"{s.rng.choice(_MORALS)}")
    return sentences


def go_on(s: Scene) -> list[str]:
    """Continue a story, without an opening."""
    first = s.pick(
        "The next day {A} ~go back {to}.",
        "Then {A} ~go on.",
        "After that {A} ~be {P} again.",
        "Later {A} ~come back {to}.",
    )
    return [first] + [sentence for part in s.rng.choice(MOODS[""]) if part is not water for sentence in part(s)]


def plans(s: Scene) -> list[str]:
    """Describe the actor's plans: two to four sentences about tomorrow, whatever the tense of the scene."""
    tense, s.tense = s.tense, "future"
    first = s.pick(
        "Tomorrow {A} ~go {to}.",
        "Tomorrow {A} ~wake up early and ~+go {to}.",
        "{A} ~go {to} tomorrow.",
        "Tomorrow morning {A} ~be {P}.",
    )
    middle = [
        "{S} ~meet {b} and ~+play a game.",
        "{S} ~look for {o}.",
        "{S} ~cook some {food} for {b}.",
        "There {S} ~count {n}.",
        "{S} ~build a new house with {b}.",
        "{S} ~write a letter to {b}.",
        "{S} ~sing a new song.",
        "{S} ~swim in the [water]cold water.",
        "If it rains, {s} ~stay at home and ~+read.",
        "{S} ~help {b} with the work.",
        "{S} ~buy {o} for {b}.",
    ]
    last = [
        "In the evening {S} ~be tired but [joy]happy.",
        "Then {S} ~come home and [night]~+sleep.",
        "It ~be [joy]a good day.",
        "At [night]night {S} ~look at the stars.",
        "Perhaps it ~be [danger]dangerous, but {s} ~be brave.",
    ]
    chosen = [*s.rng.sample(middle, s.rng.choice((1, 2, 2))), s.rng.choice(last)]
    sentences = [first, *(s.fill(template) for template in chosen)]
    s.tense = tense
    return sentences
