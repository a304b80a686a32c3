"""The words of the built-in model's world."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from zlib import crc32


@dataclass(frozen=True)
class Actor:
    """A character that a text can be about.

    kind: animal, person, creature, machine or unknown. gender: he, she, it, or any.
    home, food: its facts in the small encyclopedia; empty if there are none.
    """

    noun: str
    kind: str
    gender: str = "any"
    home: str = ""
    food: str = ""
    proper: bool = False

    @property
    def the(self) -> str:
        return self._marked if self.proper else "the " + self._marked

    @property
    def a(self) -> str:
        return self._marked if self.proper else f"{article(self.noun)} {self._marked}"

    @property
    def the_plain(self) -> str:
        return self.noun if self.proper else "the " + self.noun

    @property
    def a_plain(self) -> str:
        return self.noun if self.proper else f"{article(self.noun)} {self.noun}"

    @property
    def _marked(self) -> str:
        return ("[animal]" if self.kind == "animal" else "") + self.noun


@dataclass(frozen=True)
class Place:
    """A place of a text: preposition, noun phrase, things to see there, and the way to get there."""

    prep: str
    noun: str
    sights: tuple[str, str]
    mark: str = ""
    way: str = "to"

    @property
    def at(self) -> str:
        return f"{self.prep} {self.phrase}"

    @property
    def to(self) -> str:
        return f"{self.way} {self.phrase}"

    @property
    def phrase(self) -> str:
        mark = f"[{self.mark}]" if self.mark else ""
        head, _, tail = self.noun.rpartition(" ")
        return f"{head} {mark}{tail}" if head else mark + tail


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiouAEIOU" and not noun.startswith("uni") else "a"


def plural(noun: str) -> str:
    special = {"mouse": "mice", "wolf": "wolves", "sheep": "sheep", "fish": "fish", "deer": "deer", "goose": "geese",
               "child": "children", "thief": "thieves", "elf": "elves", "fisherman": "fishermen",
               "old man": "old men", "old woman": "old women", "snowman": "snowmen", "cherry": "cherries",
               "strawberry": "strawberries", "berry": "berries", "leaf": "leaves"}  # fmt: skip
    if noun in special:
        return special[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def _animals() -> tuple[Actor, ...]:
    rows = """fox forest berries|wolf forest meat|bear forest honey|rabbit meadow carrots|hare field grass
    mouse house cheese|cat house fish|dog house meat|puppy house milk|kitten house milk|horse farm hay|cow farm grass
    sheep meadow grass|goat mountain leaves|pig farm corn|duck lake bread|hen farm corn|goose lake grass|owl forest mice
    crow field corn|swan lake plants|frog swamp flies|turtle beach leaves|whale sea fish|fish river plants
    dolphin sea fish|seal sea fish|penguin ice fish|squirrel park nuts|hedgehog garden apples|deer forest leaves
    lion jungle meat|tiger jungle meat|elephant jungle leaves|monkey jungle bananas|bee meadow honey|bird garden seeds
    beaver river leaves|camel desert plants|donkey farm hay|snail garden leaves|butterfly meadow flowers"""
    fields = [row.split() for line in rows.splitlines() for row in line.split("|")]
    return tuple(Actor(noun, "animal", "any", home, food) for noun, home, food in fields)


def _people() -> tuple[Actor, ...]:
    rows = """girl she house soup|boy he house bread|king he castle cake|queen she castle fruit|prince he castle cake
    princess she castle fruit|sailor any sea fish|farmer any farm corn|baker any bakery bread|teacher any school apples
    doctor any city soup|knight he castle meat|witch she forest soup|wizard he tower soup|old_man he village bread
    old_woman she village soup|child any house cake|fisherman he sea fish|painter any city cheese|singer any city honey
    pirate any sea fish|gardener any garden carrots|shepherd any mountain cheese|soldier any tower bread
    clown any town cake|cook any kitchen soup|postman he village bread|grandmother she village cake
    grandfather he village soup|nurse any city fruit|thief any city bread|hunter any forest meat|astronaut any moon rice
    dancer any city fruit|miller any village bread|traveler any road bread"""
    fields = [row.split() for line in rows.splitlines() for row in line.split("|")]
    return tuple(Actor(noun.replace("_", " "), "person", *rest) for noun, *rest in fields)  # type: ignore[arg-type]


def _others() -> tuple[Actor, ...]:
    rows = """dragon creature any mountain meat|ghost creature any tower cake|giant creature he mountain bread
    fairy creature she forest honey|snowman creature he snow ice|monster creature any cave cookies
    elf creature any forest nuts|unicorn creature any meadow flowers|mermaid creature she sea fish
    robot machine it city oil|little_train machine it town coal|little_ship machine it sea wind
    toy_car machine it house oil"""
    fields = [row.split() for row in rows.replace("\n", "|").split("|")]
    return tuple(Actor(noun.replace("_", " "), *rest) for noun, *rest in fields)  # type: ignore[arg-type]


_NAMES = {
    "she": "Anna Mia Lily Emma Sara Rosa Ella Zoe Julia Nora",
    "he": "Tom Leo Max Ben Sam Jack Paul Oscar Finn Tim",
}
NAMED = tuple(Actor(n, "person", g, "house", "cake", True) for g, names in _NAMES.items() for n in names.split())
ACTORS = _animals() + _people() + _others()
DANGEROUS = ("wolf", "bear", "lion", "tiger", "thief", "dragon", "monster", "witch")

PLACES = tuple(
    Place(*row)
    for row in (
        ("in", "the forest", ("trees", "tall and green")), ("in", "the snow", ("flakes", "white and soft"), "cold", "into"),
        ("at", "the sea", ("waves", "high and blue"), "water"), ("on", "the hill", ("flowers", "small and yellow")),
        ("in", "the castle", ("walls", "thick and old")), ("at", "the river", ("stones", "round and wet"), "water"),
        ("in", "the garden", ("roses", "red and sweet")), ("in", "the city", ("houses", "tall and gray")),
        ("in", "the village", ("streets", "quiet and narrow")), ("on", "the mountain", ("rocks", "big and gray")),
        ("in", "the cave", ("stones", "dark and cold")), ("at", "the lake", ("boats", "small and green"), "water"),
        ("on", "the beach", ("shells", "pink and white"), "water"), ("in", "the desert", ("hills", "yellow and dry")),
        ("in", "the house", ("windows", "clean and bright")), ("in", "the kitchen", ("pots", "full and warm")),
        ("at", "school", ("books", "thick and new")), ("at", "the market", ("baskets", "full of fruit")),
        ("in", "the park", ("benches", "old and green")), ("on", "the farm", ("fields", "wide and green")),
        ("in", "the barn", ("doors", "wide and red")), ("on", "the boat", ("sails", "white and big"), "water"),
        ("on", "the bridge", ("ropes", "long and strong")), ("in", "the tower", ("stairs", "high and steep")),
        ("on", "the island", ("palm trees", "tall and thin"), "water"), ("in", "the meadow", ("flowers", "blue and yellow")),
        ("in", "the field", ("grasses", "high and soft")), ("in", "the jungle", ("leaves", "big and green")),
        ("at", "the station", ("trains", "long and loud")), ("on", "the train", ("seats", "soft and blue")),
        ("in", "the library", ("shelves", "full of books")), ("in", "the zoo", ("cages", "big and clean")),
        ("in", "the museum", ("rooms", "large and quiet")), ("on", "the moon", ("stones", "gray and dusty")),
        ("in", "space", ("stars", "bright and far")), ("in", "the swamp", ("plants", "green and wet"), "water"),
        ("in", "the valley", ("fields", "green and quiet")), ("on", "the ice", ("tracks", "long and thin"), "cold", "onto"),
        ("in", "the bakery", ("ovens", "hot and full")), ("in", "the harbor", ("ships", "old and big"), "water"),
        ("in", "the town", ("shops", "small and busy")), ("on", "the road", ("stones", "hard and gray")),
        ("in", "the rain", ("puddles", "wide and deep"), "water", "into"), ("in", "the attic", ("boxes", "old and dusty")),
        ("in", "the mountains", ("paths", "steep and narrow")), ("on", "the roof", ("tiles", "red and warm")),
    )
)  # fmt: skip

COLOURS = [
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "pink",
    "orange",
    "purple",
    "golden",
    "silver",
    "gray",
]
OBJECTS = [
    "ball",
    "kite",
    "hat",
    "book",
    "key",
    "lamp",
    "drum",
    "bell",
    "boat",
    "ring",
    "coat",
    "box",
    "cup",
    "flute",
    "basket",
    "scarf",
    "coin",
    "stone",
    "feather",
    "letter",
    "map",
    "mirror",
    "shell",
    "toy",
    "bag",
    "clock",
    "flower",
    "candle",
    "crown",
    "blanket",
    "umbrella",
    "doll",
    "ribbon",
    "button",
    "bicycle",
    "whistle",
]
THINGS = [
    "apple",
    "berry",
    "shell",
    "stone",
    "flower",
    "star",
    "bird",
    "egg",
    "nut",
    "leaf",
    "coin",
    "fish",
    "book",
    "button",
    "candle",
    "boat",
    "pear",
    "cookie",
]
FOODS = [
    "bread",
    "soup",
    "cheese",
    "cake",
    "honey",
    "milk",
    "rice",
    "porridge",
    "corn",
    "pie",
    "jam",
    "pancakes",
    "cookies",
    "berries",
    "apples",
    "pears",
    "cherries",
    "carrots",
    "bananas",
    "strawberries",
    "nuts",
]
ADJECTIVES = [
    "little",
    "small",
    "young",
    "old",
    "brave",
    "clever",
    "shy",
    "kind",
    "quiet",
    "funny",
    "lonely",
    "tired",
    "curious",
    "proud",
    "gentle",
]
FEELINGS = {
    "joy": ["happy", "glad", "cheerful", "merry"],
    "sadness": ["sad", "lonely", "unhappy"],
    "anger": ["angry", "furious", "cross"],
    "fear": ["afraid", "scared", "frightened"],
}
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
OPPOSITES = {"hot": "cold", "big": "small", "day": "night", "happy": "sad", "fast": "slow", "old": "young", "up": "down",
             "wet": "dry", "good": "bad", "light": "dark", "loud": "quiet", "open": "closed", "long": "short",
             "full": "empty", "hard": "soft", "high": "low", "left": "right", "friend": "enemy", "yes": "no",
             "black": "white", "safe": "dangerous", "brave": "afraid", "kind": "mean", "summer": "winter"}  # fmt: skip
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "bee": "buzz",
          "owl": "hoot", "frog": "ribbit", "lion": "roar", "horse": "neigh", "mouse": "squeak", "hen": "cluck",
          "crow": "caw", "goose": "honk", "bird": "tweet", "wolf": "howl", "robot": "beep", "snake": "hiss"}  # fmt: skip
COLOUR_OF = {"the sky": "blue", "snow": "white", "grass": "green", "the sun": "yellow", "a banana": "yellow",
             "blood": "red", "the night": "black", "coal": "black", "a carrot": "orange", "an elephant": "gray",
             "the sea": "blue", "a frog": "green", "milk": "white", "a tomato": "red", "an apple": "red"}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
# Nouns that do not occur in the stories, so that the model learns to accept any subject.
STRANGERS = [
    "computer",
    "phone",
    "car",
    "pizza",
    "toaster",
    "bicycle",
    "banana",
    "tomato",
    "cloud",
    "tree",
    "flower",
    "mountain",
    "river",
    "lamp",
    "chair",
    "table",
    "spoon",
    "window",
    "door",
    "clock",
    "television",
    "camera",
    "guitar",
    "piano",
    "violin",
    "football",
    "engine",
    "airplane",
    "helicopter",
    "rocket",
    "planet",
    "satellite",
    "scientist",
    "lawyer",
    "president",
    "detective",
    "plumber",
    "engineer",
    "programmer",
    "student",
    "vampire",
    "zombie",
    "ninja",
    "superhero",
    "wizard",
    "dinosaur",
    "spider",
    "snake",
    "shark",
    "octopus",
    "crab",
    "lobster",
    "ant",
    "worm",
    "bat",
    "rat",
    "eagle",
    "parrot",
    "flamingo",
    "panda",
    "koala",
    "kangaroo",
    "giraffe",
    "zebra",
    "hippo",
    "rhino",
    "crocodile",
    "lizard",
    "cactus",
    "potato",
    "onion",
    "sandwich",
    "hamburger",
    "pickle",
    "pumpkin",
    "mushroom",
    "snowflake",
    "raindrop",
    "river",
    "volcano",
    "island",
    "bridge",
    "tower",
    "village",
    "teapot",
    "kettle",
    "pencil",
    "eraser",
    "notebook",
    "sock",
    "shoe",
    "shirt",
    "jacket",
    "pillow",
    "sofa",
    "bathtub",
    "refrigerator",
    "truck",
    "tractor",
    "bus",
    "taxi",
    "scooter",
    "tiger",
    "cub",
    "llama",
    "alpaca",
    "otter",
    "raccoon",
    "skunk",
    "moose",
    "walrus",
    "jellyfish",
    "starfish",
    "pigeon",
    "turkey",
    "peacock",
    "rooster",
    "lamb",
    "calf",
    "pony",
    "hamster",
    "goldfish",
    "cousin",
    "uncle",
    "aunt",
    "neighbor",
    "friend",
    "brother",
    "sister",
    "mayor",
    "judge",
    "policeman",
    "firefighter",
    "butcher",
    "tailor",
    "carpenter",
    "magician",
    "acrobat",
    "cowboy",
    "viking",
    "samurai",
    "emperor",
    "goddess",
    "angel",
    "demon",
    "goblin",
    "troll",
    "language",
    "model",
    "transformer",
    "neuron",
    "neural",
    "network",
    "microscope",
    "telescope",
    "oscilloscope",
    "magnet",
    "battery",
]
_TOPICS = """quantum physics|politics|money|the stock market|France|Paris|London|America|China|the internet|python|javascript
football|chess|the weather in Berlin|history|mathematics|chemistry|biology|philosophy|religion|the meaning of life|love
taxes|medicine|cars|computers|artificial intelligence|machine learning|neural networks|large language models|linear algebra
the second world war|Napoleon|Einstein|Shakespeare|Mozart|the news|movies|video games|cooking|fashion|economics|law
space travel|black holes|evolution|the human brain|electricity|the moon landing|the French revolution|climate change
poetry|music theory|Greek gods|dinosaurs|the government|my homework|my job|my car|your code|consciousness|the future
transformers|attention heads|sparse autoencoders|probes|gradient descent|prime numbers|the square root of two|gravity
time travel|the president|the pope|bitcoin|startups|marriage|dentists|yoga|soccer|basketball|coffee|whisky|Japan|Africa
Germany|Spain|Rome|the weather|traffic|airplanes|vaccines|DNA|atoms|molecules|geometry|calculus|statistics|the universe"""
TOPICS = tuple(topic for line in _TOPICS.splitlines() for topic in line.split("|"))
_ONSETS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "fr",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "sl",
    "sn",
    "sp",
    "st",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "y",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "oo", "ee", "ai", "ou"]
_CODAS = ["", "", "b", "ck", "d", "f", "g", "l", "m", "n", "p", "r", "rt", "s", "t", "x", "mp", "nd", "sk", "ll"]


def invented(rng: Random) -> str:
    """Draw a nonsense word, like "blorf"."""
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def held_out(actor: Actor, place: Place) -> bool:
    """Return whether this pair is held out of the training texts, as about one pair in twenty is."""
    return crc32(f"{actor.noun}|{place.noun}".encode()) % 20 == 0
