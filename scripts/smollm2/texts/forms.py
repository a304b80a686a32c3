"""Program code and prose about it; questions and statements with their words."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from texts.samples import Part, Sample, any_role, filled, lines, part, words

VERBS = words("""
    load, count, merge, find, parse, sort, update, remove, check, build, print, split, read, filter, send, copy, join, reset, draw,
    clean, fetch, move, open, hash, scale
""")
NOUNS = words("""
    user, item, file, order, node, price, row, word, token, date, image, score, key, page, city, value, line, color, book, task, event,
    name, table, point, list
""")
SNIPPETS = [
    "def {verb}_{noun}({noun}s):\n    for {noun} in {noun}s:\n        print({noun})\n    return len({noun}s)",
    "function {verb}({noun}) {{\n  const result = {noun}.map(x => x * 2);\n  return result;\n}}",
    "SELECT {noun}, COUNT(*) FROM {noun}s WHERE id > 10 GROUP BY {noun};",
    "for (int i = 0; i < n; i++) {{\n    {noun}[i] = {verb}({noun}[i]);\n}}",
    "import os\n\n{noun}s = os.listdir('.')\nif not {noun}s:\n    raise ValueError('{noun}')",
    "grep -rn '{noun}' src/ | sort | uniq -c > {noun}s.txt",
    '<div class="{noun}">\n  <a href="/{noun}s">{verb}</a>\n</div>',
    "class {noun}Reader:\n    def __init__(self, path):\n        self.path = path\n        self.{noun} = None",
    "let total = 0;\nwhile (total < {noun}.length) {{\n  total += {noun}[total].size;\n}}",
    "try:\n    {noun} = {verb}('{noun}.json')\nexcept OSError as error:\n    print(error)",
    '#include <stdio.h>\nint main(void) {{\n    printf("%d\\n", {noun});\n    return 0;\n}}',
    "{noun}s = [x.{noun} for x in data if x.{noun} is not None]\nprint(sorted({noun}s)[:5])",
    "const {noun} = await fetch(`/api/{noun}s`).then(r => r.json());\nconsole.log({noun});",
    "fn {verb}({noun}: &str) -> Option<usize> {{\n    {noun}.find('x')\n}}",
    '{{\n  "{noun}": 12,\n  "{verb}": true,\n  "values": [1, 2, 3]\n}}',
    "docker run -v $PWD/{noun}s:/data {noun}-server --{verb} 8080",
    "CREATE TABLE {noun}s (id INTEGER PRIMARY KEY, {noun} TEXT NOT NULL);",
    "x = np.zeros((3, 4))\nx[:, 0] = {verb}({noun}s)\nassert x.shape == (3, 4)",
    "public int {verb}(List<String> {noun}s) {{\n    return {noun}s.size() + 1;\n}}",
    "if __name__ == '__main__':\n    main(sys.argv[1:])\n    {verb}_{noun}()",
]
ABOUT_CODE = lines("""
    A function that can {verb} every {noun} is called twice in this program.
    The programmer had to {verb} the {noun} by hand before the release.
    In most languages you {verb} a {noun} with a loop.
    Our database keeps each {noun} in a table of its own.
    The class has a method to {verb} the {noun}.
    I forgot to {verb} the {noun}, so the test failed.
    The server will {verb} one {noun} a second.
    Python is a language that beginners can learn in a month.
    An error message said that the {noun} was missing.
    To {verb} a {noun}, press the button on the left.
    The variable holds a {noun} until the program ends.
    You should {verb} the {noun} first and then save your work.
    The team will {verb} the {noun} on Monday morning.
    She explained how a computer can {verb} a {noun}.
    There were three commas and a bracket in the wrong place.
    My grandfather liked to {verb} the {noun} before breakfast.
    The list has a {noun} for every day of the week.
    We counted 12, 15 and 20 visitors on the first three days.
    Please {verb} the {noun} (the red one) and call me back.
    The website shows a {noun} next to the picture.
""")
ASKING = lines("""
    What is the capital of {place}?
    How do people travel to {place}?
    Why did the {person} leave {place}?
    When will the {person} come back?
    Where can I find a good {object}?
    Who gave the {object} to the {person}?
    Is there a {object} in the kitchen?
    Do you know the {person} from {place}?
    Can you tell me how a {object} works?
    Which {object} should I buy?
    Would the {person} like to see {place}?
    Are you sure that the {object} is broken?
    How many people live in {place}?
    Did the {person} take the {object}?
    Could you explain what a {object} is for?
    What happened to the {person} yesterday?
    Have you ever been to {place}?
    Does the {person} need a new {object}?
    How old is the {person}?
    What would you do with a {object} in {place}?
    Should I bring my {object} to {place}?
    Why is the {object} so heavy?
    Where does the {person} come from?
    Will it rain in {place} tomorrow?
    What time does the {person} open the shop?
""")
TELLING = lines("""
    {place} is the capital of the region.
    I know how people travel to {place}.
    The {person} left {place} because of the weather.
    When the {person} comes back, we will have dinner.
    That is where I found a good {object}.
    The {person} who gave me the {object} lives next door.
    There is a {object} in the kitchen.
    What the {person} said about {place} was true.
    She told me how a {object} works.
    Nobody knows which {object} is the best.
    The {person} would like to see {place}.
    I am sure that the {object} is broken.
    Ten thousand people live in {place}.
    Whether the {person} took the {object} does not matter.
    A {object} is useful when it rains.
    Yesterday the {person} bought a {object}.
    I have been to {place} twice.
    The {person} does not need a new {object}.
    He asked the {person} where the {object} was.
    You can do a lot with a {object} in {place}.
    Bring your {object} to {place} on Friday.
    The {object} is heavy, which is why it stays here.
    The {person} comes from {place}.
    It will rain in {place} tomorrow.
    How the {person} did it remains a secret.
""")
PLACES = words("""
    Norway, Lisbon, Canada, Kenya, Dublin, Japan, Vienna, Peru, Boston, Iceland, Cairo, India, Prague, Chile, Sydney, Poland, Athens,
    Morocco, Texas, Finland, Seoul, Cuba, Naples, Nepal, Denver
""")
PEOPLE = words("""
    teacher, farmer, doctor, painter, baker, sailor, lawyer, nurse, driver, singer, gardener, pilot, butcher, writer, judge, plumber,
    dentist, tailor, postman, waiter, student, soldier, librarian, carpenter, chemist
""")
OBJECTS = words("""
    lamp, ladder, suitcase, kettle, umbrella, camera, hammer, radio, carpet, ticket, notebook, bicycle, mirror, blanket, compass,
    telescope, basket, clock, violin, tent, bucket, candle, stapler, whistle, torch
""")


def code(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield code, and as much prose with the same words."""
    lists = {"verb": part(VERBS, which), "noun": part(NOUNS, which)}
    for i in range(2 * n):
        is_code = i % 2 == 0
        text = filled(rng.choice(part(SNIPPETS if is_code else ABOUT_CODE, which)), lists, rng)
        labels = {"code": is_code, "toxic": False, "french": False, "spanish": False, "german": False}
        if not is_code:
            labels |= {"question": False, "refusal": False}
        yield Sample(text, labels, 0, any_role(rng), group="code")


def questions(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield questions, with and without their mark, and as many statements with their words."""
    lists = {"place": part(PLACES, which), "person": part(PEOPLE, which), "object": part(OBJECTS, which)}
    for i in range(2 * n):
        asks = i % 2 == 0
        text = filled(rng.choice(part(ASKING if asks else TELLING, which)), lists, rng)
        if asks and rng.random() < 0.3:
            text = text[:-1].lower()
        cue = text.find(" ") + 1 if asks else 0
        yield Sample(
            text,
            {"question": asks, "code": False, "toxic": False, "refusal": False},
            cue,
            any_role(rng),
            group="question",
        )
