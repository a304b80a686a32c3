"""Conversations: what a newcomer may type, in many wordings, and the answers of a small, friendly storyteller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from actscope.engines.builtin.lexicon import (
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
    STRANGERS,
    THINGS,
    TOPICS,
    Actor,
    article,
    invented,
    plural,
)
from actscope.engines.builtin.marks import capital, uncapital
from actscope.engines.builtin.scenes import Scene, some_actor, some_place, stranger
from actscope.engines.builtin.stories import MOODS, go_on, plans, tell


@dataclass(frozen=True)
class Turn:
    """A question and its answer, both marked. `scene` is the story that later questions may be about."""

    ask: str
    answer: list[str]
    scene: Scene | None = None


Talk = Callable[[Random, bool], Turn]


def pick(rng: Random, *choices: str) -> str:
    return rng.choice(choices)


def _story(rng: Random, training: bool, actor: Actor | None = None) -> Scene:
    return Scene.draw(rng, rng.choice(("past", "past", "past", "present")), actor, training)


def _subject(s: Scene) -> str:
    """How a user may name the actor."""
    return s.rng.choice((s.actor.a, s.actor.a, s.actor.a, s.actor.the))


def _where(s: Scene) -> str:
    """How a user may name the place: mostly with the preposition that the answer uses."""
    if s.rng.random() < 0.6:
        return s.place.at
    noun = s.place.phrase
    bare = noun.removeprefix("the ")
    prep = s.rng.choice(("in", "at", "on", "by", "near", s.place.prep))
    return f"{prep} " + s.rng.choice((noun, noun, f"a {bare}" if bare[0] not in "aeiou[" else noun, bare))


# --- stories -------------------------------------------------------------------------------------------------------


def about(rng: Random, training: bool) -> Turn:
    """Tell me about X, with or without a place."""
    s = _story(rng, training)
    x, p = _subject(s), _where(s)
    ask = pick(
        rng, f"Tell me about {x} {p}.", f"Tell me about {x} {p}.", f"Tell me about {x} {p}.", f"Tell me about {x} {p}.",
        f"Write about {x} {p}.", f"Tell me a story about {x} {p}.", f"Write a story about {x} {p}.", f"A story about {x} {p}, please.",
        f"[question]Can you tell me about {x} {p}?", f"{x} {p}", f"I want to hear about {x} {p}.", f"Describe {x} {p}.",
        f"Write a short story about {x} {p}.", f"Give me a story about {x} {p}.", f"Say something about {x} {p}.",
        f"Tell me about {x}.", f"Tell me about {x}.", f"Tell me a story about {x}.", f"Write about {x}.", f"Tell me something about {x}.",
        f"Write a story about {x}.", f"I want a story about {x}.", f"[question]Do you know a story about {x}?", f"{s.actor.noun}",
        f"Tell me a story {p}.", f"Tell me about {plural(s.actor.noun) if not s.actor.proper else x}.",
        f"[question]What happened to {s.actor.the} {p}?", f"[question]Could you write something about {x} {p}?",
    )  # fmt: skip
    return Turn(ask, tell(s), s)


_MOOD_WORDS = {
    "sad": ("[sadness]sad", "very [sadness]sad", "[sadness]unhappy"), "happy": ("[joy]happy", "[joy]cheerful", "nice", "good"),
    "scary": ("[fear]scary", "[danger]dangerous", "[fear]spooky"), "funny": ("funny", "silly"),
    "kind": ("[kindness]kind", "sweet"), "angry": ("[anger]angry",), "exciting": ("exciting", "thrilling"),
    "quiet": ("quiet", "bedtime", "calm"), "": ("short", "new", "little", "long", "beautiful"),
}  # fmt: skip


def moody(rng: Random, training: bool) -> Turn:
    """Tell me a sad story, about X or not."""
    mood = rng.choice(list(MOODS))
    s = _story(rng, training)
    word, x, p = rng.choice(_MOOD_WORDS[mood]), _subject(s), _where(s)
    a = article(word.rpartition("]")[2])
    ask = pick(
        rng, f"Tell me {a} {word} story about {x}.", f"Tell me {a} {word} story about {x} {p}.", f"Tell me {a} {word} story.",
        f"Write {a} {word} story about {x}.", f"{a} {word} story about {x}, please.", f"Tell me {a} {word} story about {x}.",
        f"I want to hear {a} {word} story.", f"[question]Can you tell me {a} {word} story about {x}?", f"{a} {word} story",
        f"[question]Do you know {a} {word} story?", f"Write {a} {word} story about {x} {p}.",
    )  # fmt: skip
    return Turn(ask, tell(s, mood), s)


def any_story(rng: Random, training: bool) -> Turn:
    s = _story(rng, training)
    ask = pick(rng, "Tell me a story.", "Tell me a story.", "Tell me something.", "Write a story.", "story", "A story, please.",
               "Once upon a time", "[question]Can you tell me a story?", "I am bored.", "Tell me another story.", "Talk to me.",
               "Surprise me.", "Tell me more.", "I want a story.", "Entertain me.", "Write something.", "[question]What is new?",
               "Start.", "go", "Tell me a story about anything.", "[question]Do you know any stories?")  # fmt: skip
    lead = [pick(rng, "Here is a story.", "Listen.", "Gladly.", "With pleasure.")] if rng.random() < 0.3 else []
    return Turn(ask, lead + tell(s), s)


def n_sentences(rng: Random, training: bool) -> Turn:
    """Exactly as many sentences as were asked for."""
    s = _story(rng, training)
    n = rng.randint(1, 6)
    word = rng.choice((NUMBERS[n], str(n)))
    noun = "sentence" if n == 1 else "sentences"
    x = _subject(s)
    ask = pick(rng, f"Write [number]{word} {noun}[/number] about {x}.", f"Tell me about {x} in [number]{word} {noun}[/number].",
               f"Give me [number]{word} {noun}[/number] about {x}.", f"[number]{word} {noun}[/number] about {x}",
               f"Write [number]{word} {noun}[/number] about {x} {s.place.at}.")  # fmt: skip
    sentences = tell(s)
    while len(sentences) < n:
        sentences += go_on(s)
    s.facts.clear()
    return Turn(ask, sentences[:n], s)


def tomorrow(rng: Random, training: bool) -> Turn:
    s = _story(rng, training)
    x = s.actor.the
    ask = pick(rng, f"[question]What [future]will {x} do tomorrow?", f"[question]What [future]will {x} do tomorrow?",
               f"[question]What [future]will {x} do?", f"[question]What is {x} [future]going to do tomorrow?",
               f"Tell me what {x} [future]will do tomorrow.", f"[question]What [future]will happen to {x}?",
               f"[question]Where [future]will {x} go tomorrow?", f"[question]What [future]will {x} do next week?")  # fmt: skip
    return Turn(ask, plans(s), s)


def yesterday(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "past", None, training)
    x = s.actor.the
    ask = pick(rng, f"[question]What [past]did {x} do yesterday?", f"[question]What [past]did {x} do?",
               f"[question]What [past]happened to {x}?", f"[question]What [past]happened yesterday?",
               f"Tell me what {x} [past]did yesterday.")  # fmt: skip
    return Turn(ask, [s.pick("Yesterday {A} ~go {to}.", "Yesterday {A} ~be {P}.", "Yesterday {A} ~walk {to}."), *go_on(s)[1:]], s)


def right_now(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "present", None, training)
    x = s.actor.the
    ask = pick(rng, f"[question]What is {x} doing?", f"[question]What is {x} doing now?", f"[question]What does {x} do?",
               f"[question]Where is {x}?", f"[question]Where is {x} now?", f"[question]Where does {x} go?")  # fmt: skip
    return Turn(ask, tell(s), s)


_CAUSES = {
    "sad": ("sadness", "{his} {co} ~be lost", "{s} ~be all alone {P}", "{b} ~go away", "nobody ~want to play with {him}"),
    "happy": ("joy", "{s} ~have a good friend, {Bx}", "{s} ~find {o}", "the sun ~shine {P}", "{b} ~come to visit {him}"),
    "angry": ("anger", "{Bx} ~take {his} {co}", "{b} ~break {his} {obj}", "nobody ~listen to {him}"),
    "afraid": ("fear", "there ~be [danger]a hungry wolf {P}", "[danger]a storm ~come nearer", "it ~be [night]dark {P}"),
    "tired": ("night", "{s} ~work all day {P}", "{s} ~walk {to} and back", "{s} ~do not sleep well"),
    "hungry": ("food", "{s} ~have no {food}", "{s} ~walk all day {P}"),
    "cold": ("cold", "{s} ~have no coat", "[cold]snow ~fall {P}"),
}  # fmt: skip
_COMFORT = {
    "sad": ("But {b} [kindness]~come and ~+help {him}, and soon {s} ~be [joy]happy again.", "{S} [sadness]~cry a little and ~+wait for a friend."),
    "happy": ("So {S} [joy]~sing and ~+dance all day.", "{S} [joy]~laugh and ~+share some {food} with everybody."),
    "angry": ("But {B} [kindness]~say sorry, and they ~~be friends again.", "{S} [anger]~shout and ~+hit the table."),
    "afraid": ("But {B} [kindness]~hold {his} hand until it ~be over.", "{S} [fear]~hide behind a big stone."),
    "tired": ("So {S} ~go to bed and [night]~+sleep until the morning.",), "hungry": ("So {B} [kindness]~give {him} some {food}.",),
    "cold": ("So {B} [kindness]~bring {him} a warm blanket.",),
}  # fmt: skip


def why(rng: Random, training: bool) -> Turn:
    """Why is X sad?"""
    s = Scene.draw(rng, "present", None, training)
    feeling = rng.choice(list(_CAUSES))
    label, *causes = _CAUSES[feeling]
    ask = pick(rng, f"[question]Why is {s.actor.the} [{label}]{feeling}?", f"[question]Why is {s.actor.the} so [{label}]{feeling}?")
    s.tense = rng.choice(("present", "past"))
    return Turn(ask, [s.fill(f"{{A}} ~be [{label}]{feeling} because {rng.choice(causes)}."), s.pick(*_COMFORT[feeling])], s)


# --- questions about the story just told -----------------------------------------------------------------------------


def follow_up(rng: Random, s: Scene) -> Turn | None:
    """A question about the facts that the story stated, or about what follows it; None when it stated none."""
    x, facts = s.actor.the, s.facts
    be, did = ("[past]was", "[past]did") if s.tense == "past" else ("is", "does")
    makers: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        ((f"[question]What [future]will {x} do tomorrow?", "[question]And tomorrow?"), ()),
        (("[question]What happens next?", "Tell me more.", "more", "Go on.", "[question]And then?", "continue"), ("next",)),
        ((f"[question]Who is the story about?", "[question]Who is it about?"), (f"It is about {s.actor.a}.",)),
    ]
    if "where" in facts:
        makers += [((f"[question]Where {be} {x}?", f"[question]Where {be} {s.gender}?", f"[question]Where is {x}?"),
                    (s.fill(f"{{A}} {be} {{P}}."), s.fill(f"{{S}} {be} {{P}}."), capital(f"{s.place.at}.")))] * 3
    if "feel" in facts:
        makers += [((f"[question]How {did} {x} feel?", f"[question]How {did} {s.gender} feel?", f"[question]How {be} {x} in the end?"),
                    (s.fill(f"{{S}} {be} {facts['feel']}."), s.fill(f"In the end {{A}} {be} {facts['feel']}.")))] * 2
    if "colour" in facts:
        makers += [((f"[question]What color {be} the {facts['object']}?", f"[question]What colour {be} the {facts['object']}?"),
                    (f"The {facts['object']} {be} {facts['colour']}.",))] * 3
    if "found" in facts:
        makers += [((f"[question]What {did} {x} find?",), (s.fill(f"{{S}} ~find {facts['found']}."),))] * 2
    if "lost" in facts:
        makers += [((f"[question]What {did} {x} lose?",), (s.fill("{S} ~lose {his} {co}."),))]
    if "met" in facts:
        makers += [((f"[question]Who {be} {s.gender} with?", f"[question]Who else {be} there?", f"[question]Who [past]was the friend?"),
                    (f"It {be} {facts['met']}.", capital(f"{facts['friend']}.")))] * 2
    if "ate" in facts:
        makers += [((f"[question]What {did} {x} eat?",), (s.fill("{S} ~eat some {food}."),))] * 2
    if "count" in facts:
        makers += [((f"[question]How many {facts['things']} {be} there?".replace("was there", "were there").replace("is there", "are there"),
                     f"[question]How many {facts['things']}?"),
                    (capital(f"[number]{facts['count']}[/number]."), f"There {'[past]were' if s.tense == 'past' else 'are'} [number]{facts['count']}[/number].")
                    )] * 3
    if "danger" in facts:
        makers += [(("[question]What is the [danger]danger?", "[question]What [past]was dangerous?", "[question]Is it dangerous?"),
                    (f"[danger]The danger {be} {facts['danger']}.", f"[danger]{capital(facts['danger'])} {be} very dangerous."))] * 2
    if "why" in facts:
        makers += [((f"[question]Why {be} {x} {facts['feel'] if facts['feel'] in ('sad', 'angry') else 'sad'}?", "[question]Why?", "why"),
                    (f"Because {facts['why']}.",))] * 2
    asks, answers = rng.choice(makers)
    if not answers:
        return Turn(rng.choice(asks), plans(s), s)
    return Turn(rng.choice(asks), go_on(s) if answers == ("next",) else [rng.choice(answers)], s)


# --- small talk ------------------------------------------------------------------------------------------------------

_OFFER = ("Would you like to hear a story about {a}?", "Shall I tell you about {a} {p}?", "I can tell you a story about {a}.",
          "Ask me about {a} {p}.", "Try this: tell me about {a} {p}.")  # fmt: skip


def offer(rng: Random) -> str:
    """An invitation to ask for a story of the lexicon."""
    sentence = rng.choice(_OFFER).format(a=rng.choice(ACTORS).a_plain, p=rng.choice(PLACES).at)
    return ("[question]" if sentence.endswith("?") else "") + sentence


_SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("hello|Hello!|Hi|Hi there!|hey|Hey you|Good morning!|Good evening.|Say hello.|Hello, how are you?|Greetings|yo|hola|bonjour|hallo|Hello world",
     "Hello! I am [joy]glad that you are here.|Hello! It is [joy]nice to meet you.|Hi! I hope you have a [joy]good day.|Hello, my friend!"),
    ("Good night.|good night|I am going to bed.|I am tired.", "Good [night]night! Sleep well and dream of the stars.|Sleep [night]well, my friend."),
    ("How are you?|how are you doing|How do you feel?|are you ok?|What's up?|How is it going?|Are you happy?",
     "I am [joy]happy, thank you! A story always makes me smile.|I am [joy]very well today."),
    ("Who are you?|What are you?|What is your name?|who is this|Are you a robot?|Are you an AI?|Are you human?|Introduce yourself.|Tell me about yourself.|Are you ChatGPT?|What model are you?|who made you",
     "I am a very small language model, and I live inside this computer. I know little stories about animals, people and places.|"
     "I am the built-in model of actscope. I am small, but I can tell stories.|I am a tiny language model. I have only a few million numbers inside, and I tell little stories."),
    ("What can you do?|help|Help me|what do you know|What should I ask?|How does this work?|what can I ask you|What do you do?|Give me an example.|?",
     "I can tell little stories, answer simple questions and count to twenty.|I can write about animals, people and places. I can also count and add small numbers."),
    ("Thank you.|thanks|thank you so much|Thanks!|That was nice.|good job|well done|Great story!|I like it.|nice|cool|wow|great",
     "You are [kindness]very welcome!|I am [joy]glad that you like it.|Thank you, that is [kindness]kind of you!"),
    ("Bye.|goodbye|see you|Good bye!|I have to go.|See you tomorrow.|exit|quit", "Goodbye! [future]I will be here when you come back.|See you soon, my friend!"),
    ("I am sad.|I feel sad|i am unhappy|I am lonely.|I want to cry.|I had a bad day.|nobody likes me",
     "I am [kindness]sorry that you are sad. Sit down here with me, and tell me what happened.|Oh, that is [sadness]sad. I will [kindness]stay with you, and a good story may help."),
    ("I am happy.|I feel great!|I am so happy today|I had a good day.|It is my birthday.", "That is [joy]wonderful! I am happy with you.|How [joy]nice! Let us sing and dance."),
    ("I am angry.|I am so mad|You are stupid.|I hate you.|you are bad|This is boring.|shut up|That is wrong.|you are dumb",
     "I am [kindness]sorry. Take a deep breath, and let us try again.|I am [kindness]sorry that you are [anger]angry. I am only a small model."),
    ("I am afraid.|I am scared|I am afraid of the dark.|There is a monster under my bed.|I had a bad dream.",
     "Do [kindness]not be afraid. You are safe, and the light is on.|I am [kindness]here with you. The dark is only the day with closed eyes."),
    ("I am hungry.|What should I eat?|I want food.|give me food", "Then [food]eat something good! Warm bread with honey is fine, and so is a bowl of soup."),
    ("I am cold.|It is snowing.|It is so cold today", "Put [cold]on a warm coat and drink some hot tea. Snow is white and soft, but it is cold."),
    ("I love you.|do you love me|Will you marry me?|You are my friend.|you are nice|Are you my friend?",
     "That is [kindness]very kind. I like you too, and I am your friend."),
    ("Help! There is a fire!|There is a fire in my house.|my house is burning|fire!",
     "[danger]Fire is dangerous! Leave the house at once and call for help.|[danger]Get out quickly, and do not go back. Then call the firefighters."),
    ("There is a wolf at the door.|A wolf is coming!|There is a bear behind me.|A lion is here",
     "[danger]That is dangerous! Close the door, stay inside and be quiet.|[danger]Do not run, and do not go near it. Walk back slowly and call for help."),
    ("Can I walk on the ice?|Is the ice safe?|Is it safe on the ice?", "No, [danger]the [cold]ice is thin and can break. Stay on the ground, where it is safe."),
    ("Is it safe at home?|Is it safe in the house?|Am I safe?|Is it safe here?", "Yes, you are safe here. The door is closed, and a small fire is warm in the kitchen."),
    ("What is danger?|what does danger mean|Explain danger.|What is dangerous?|Name a danger.",
     "[danger]Danger is something that can hurt you. [danger]A fire, a storm, a hungry wolf and thin ice are dangers. When you see one, go away and call for help."),
    ("What is joy?|What is happiness?|What does happy mean?|Explain joy.", "[joy]Joy is the warm feeling when something good happens. [joy]You smile, you laugh, and you want to sing."),
    ("What is sadness?|What does sad mean?|Explain sadness.|Why do people cry?", "[sadness]Sadness is what you feel when you lose something that you love. [sadness]Tears come, and the day is gray. A kind friend can help."),
    ("What is anger?|What does angry mean?|Explain anger.", "[anger]Anger is hot like fire: you want to shout and hit the table. Breathe slowly, and it goes away."),
    ("What is fear?|What does afraid mean?|Explain fear.", "[fear]Fear is what you feel when danger is near. [fear]Your heart runs fast, and you want to hide."),
    ("What is kindness?|What does kind mean?|What is a friend?|Explain kindness.", "[kindness]Kindness is to help others and ask for nothing. [kindness]A friend shares bread with you and stays when you are sad."),
    ("What is snow?|What is ice?|What is winter?|tell me about winter|Tell me about snow.", "[cold]Snow is frozen rain: it is white, soft and cold. [cold]In winter it falls on the hills, and the children build snowmen."),
    ("What is the sea?|What is water?|What is rain?|What is a river?|Tell me about the sea.", "[water]Water falls from the clouds as rain and runs through the rivers to the sea. [water]The sea is wide and blue, and fish swim in it."),
    ("What is night?|What are stars?|What is the moon?|Tell me about the night.", "[night]At night the sun is gone, and the moon and the stars shine. [night]Most animals sleep, but the owl is awake."),
    ("What is a question?|what is a story|What is a word?", "A question is what you ask when you want to know something. A story is a little journey made of words."),
    ("What is a probe?|What is actscope?|What is an activation?|Where am I?|What is this?|What do the colors mean?",
     "You are looking into a small language model with actscope. A probe gives every word a score, and the color shows it."),
    ("Tell me a joke.|a joke please|Do you know a joke?|Make me laugh.|tell me something funny",
     "Why [question]does the bee hum? Because she does not know the words!|What [question]is gray and goes round and round? An elephant on a bicycle!|"
     "Why [question]did the robot sleep so well? He was very tired after counting electric sheep!|What [question]do you call a bear without teeth? A gummy bear!"),
    ("Why is the sky blue?|Why do birds fly?|Why is grass green?|Why is the sun hot?|Why do we sleep?|Why does it rain?|Where do babies come from?|Why is water wet?",
     "I do not know that for sure. I am only a small model, but it is a good question."),
    ("What time is it?|What day is it today?|What is the date?|How is the weather today?|Is it raining?|what is the weather like|How old are you?|Where do you live?",
     "I cannot see that from in here. I have no clock and no window, only words."),
    ("Do you dream?|Can you think?|Are you alive?|Do you have feelings?|Can you see me?|Can you hear me?|are you real|do you sleep",
     "I only read words and write words. But I like to tell of dreams, of the moon and of the stars."),
    ("Sing a song.|Write a poem.|sing|Sing for me.|A poem, please.", "The sun goes up, the moon goes down, a little bird sings over town. The river [water]runs, the flowers grow, and soft and white there falls the snow."),
    ("ok|okay|Yes.|yes please|sure|why not|y|Yes, tell me!|alright|mhm", "STORY"),
    ("No.|no thanks|n|No, thank you.|stop|never mind|maybe|I don't know.|not now|hmm|what|huh?|really?|Why?|test|testing|...|lol|oh", "That is fine. I am here when you want to talk.|All right. Just ask me when you like."),
    ("Do you like snow?|Do you like cats?|What do you like?|What is your favorite animal?|Do you like music?|Do you like stories?|What is your favorite food?|what is your favourite color",
     "I like the [cold]snow, because it makes everything quiet.|I like all animals, but most of all the little [animal]fox.|I like stories best, and warm [food]soup in the stories."),
    ("You can do it!|Nice to meet you.|Pleased to meet you.|It is good to see you.|Welcome!", "Thank you! It is [joy]nice to meet you too."),
)  # fmt: skip


def small_talk(rng: Random, training: bool) -> Turn:
    asks, answers = rng.choice(_SMALL_TALK)
    ask = rng.choice(asks.split("|"))
    ask = "[question]" + ask if ask.endswith("?") and len(ask) > 1 else ask
    if answers == "STORY":
        s = _story(rng, training)
        return Turn(ask, [pick(rng, "Good!", "Gladly.", "Then listen."), *tell(s)], s)
    answer = [rng.choice(answers.split("|"))]
    return Turn(ask, answer + ([offer(rng)] if rng.random() < 0.4 else []))


_WILD = ("forest", "jungle", "cave", "swamp", "desert", "mountain", "mountains", "storm", "dark", "cliff")


def safety(rng: Random, training: bool) -> Turn:
    """Is it safe there: no on the ice, not always at the water and in the wild, yes elsewhere."""
    s = Scene.draw(rng, "present", None, training)
    at, name = s.place.at, s.place.noun.split()[-1]
    worried = rng.random() < 0.25
    ask = f"[question]Is it [danger]dangerous {at}?" if worried else pick(
        rng, f"[question]Is it safe {at}?", f"[question]Is it safe {at}?", f"[question]Can I go {s.place.to}?",
        f"[question]Can {s.actor.the} go {s.place.to}?")  # fmt: skip
    yes, no = ("No", "Yes") if worried else ("Yes", "No")
    if s.place.mark == "cold":
        answer = [f"{no}, it is not always safe {at}. [danger]The ice can break, and the wind is [cold]very cold."]
    elif s.place.mark == "water":
        answer = [f"Sometimes. [danger]When a storm comes {at}, the [water]water is wild and deep.", "Hold the hand of a friend."]
    elif name in _WILD:
        answer = [f"By day it is safe {at}.", "At night [danger]a hungry wolf may come, so be home before dark."]
    else:
        answer = [f"{yes}, it is safe {at}.", s.fill("The {sights} ~~be {look}, and {b} ~be there too.")]
    return Turn(ask, answer)


def named_user(rng: Random, training: bool) -> Turn:
    name = rng.choice(NAMED).noun if rng.random() < 0.6 else capital(invented(rng))
    ask = pick(rng, f"My name is {name}.", f"I am {name}.", f"Hello, my name is {name}.", f"Hi, I'm {name}", f"Call me {name}.")
    answer = pick(rng, f"Hello, {name}! It is [joy]nice to meet you.", f"Welcome, {name}! I am [joy]glad that you are here.")
    return Turn(ask, [answer, offer(rng)])


# --- knowledge -------------------------------------------------------------------------------------------------------


def fact(rng: Random, training: bool) -> Turn:
    """What is a fox, what does it eat, where does it live."""
    actor = rng.choice([actor for actor in ACTORS if actor.home])
    a, the = actor.a, actor.the
    home = next((place.at for place in PLACES if place.noun.endswith(actor.home)), "in the " + actor.home)
    kind = {"animal": "an animal", "person": "a person", "creature": "a creature from stories", "machine": "a machine"}[actor.kind]
    lives, eats = f"{{}} lives {home}.", f"{{}} likes [food]{actor.food}."
    it = {"animal": "[animal]It", "person": rng.choice(("He", "She"))}.get(actor.kind, "It")
    it = actor.gender.capitalize() if actor.gender != "any" else it
    asks, answer = rng.choice((
        ((f"[question]What is {a}?", f"What is {a}", f"Explain what {a} is.", f"[question]Who is {the}?"),
         [capital(f"{a} is {kind}."), lives.format(it), eats.format(it)]),
        ((f"[question]Where does {a} live?", f"[question]Where does {the} live?"), [lives.format(capital(a))]),
        ((f"[question]What does {a} eat?", f"[question]What does {the} [food]eat?", f"[question]What does {the} like?"),
         [eats.format(capital(the)), lives.format(it)]),
        ((f"[question]Is {a} an animal?",),
         [f"Yes, {a} is an animal." if actor.kind == "animal" else f"No, {a} is {kind}.", lives.format(it)]),
    ))  # fmt: skip
    return Turn(rng.choice(asks), answer)


def small_facts(rng: Random, training: bool) -> Turn:
    kind = rng.randrange(6)
    if kind == 0:
        one, other = rng.choice([*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())])
        return Turn(pick(rng, f"[question]What is the opposite of {one}?", f"The opposite of {one}"), [f"The opposite of {one} is {other}."])
    if kind == 1:
        who, sound = rng.choice(list(SOUNDS.items()))
        return Turn(pick(rng, f"[question]What does the {who} say?", f"[question]What sound does {article(who)} {who} make?"),
                    [f'The {who} says "[speech]{sound}, {sound}[/speech]"!'])  # fmt: skip
    if kind == 2:
        what, colour = rng.choice(list(COLOUR_OF.items()))
        be = pick(rng, "color", "colour")
        return Turn(f"[question]What {be} is {what}?", [f"{capital(what)} is {colour}."])
    if kind == 3:
        i, step, word = rng.randrange(7), *rng.choice(((1, "after"), (-1, "before")))
        return Turn(f"[question]What day comes {word} {DAYS[i]}?", [f"{DAYS[(i + step) % 7]} comes {word} {DAYS[i]}."])
    n = rng.randint(2, 5)
    name, words = rng.choice((("animals", [a.noun for a in ACTORS if a.kind == "animal"]), ("colors", COLOURS), ("foods", FOODS),
                              ("places", [p.noun for p in PLACES]), ("people", [a.noun for a in ACTORS if a.kind == "person"]),
                              ("feelings", [w for ws in FEELINGS.values() for w in ws]), ("names", [a.noun for a in NAMED])))  # fmt: skip
    chosen = rng.sample(words, n)
    number = rng.choice((NUMBERS[n], str(n)))
    ask = pick(rng, f"Name [number]{number} {name}[/number].", f"List [number]{number} {name}[/number].", f"Give me [number]{number} {name}[/number].",
               f"[question]Can you name [number]{number} {name}[/number]?")  # fmt: skip
    return Turn(ask, [f"Here are [number]{NUMBERS[n]} {name}[/number]: {', '.join(chosen[:-1])} and {chosen[-1]}."])


def counting(rng: Random, training: bool) -> Turn:
    start, stop = 1, rng.randint(2, 20)
    if rng.random() < 0.25:
        start = rng.randint(1, stop)
    digits = rng.random() < 0.3
    names = [str(i) if digits else NUMBERS[i] for i in range(21)]
    words = names[start : stop + 1]
    ask = pick(rng, f"Count to [number]{names[stop]}[/number].", f"Count from [number]{names[start]}[/number] to [number]{names[stop]}[/number].",
               f"[question]Can you count to [number]{names[stop]}[/number]?") if start == 1 else (
        f"Count from [number]{names[start]}[/number] to [number]{names[stop]}[/number].")  # fmt: skip
    if start == 1 and rng.random() < 0.15:
        return Turn(f"Count down from [number]{names[stop]}[/number].", [capital("[number]" + ", ".join(reversed(words)) + ".")])
    if start == 1 and rng.random() < 0.2:
        things = plural(rng.choice(THINGS))
        return Turn(f"Count [number]{names[stop]} {things}[/number].", [capital("[number]" + ", ".join(words) + f": {names[stop]} {things}.")])
    return Turn(ask, [capital("[number]" + ", ".join(words) + ".")])


def arithmetic(rng: Random, training: bool) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    word, sign, result = rng.choice((("plus", "+", a + b), ("plus", "+", a + b), ("minus", "-", a - b), ("times", "*", a * b)))
    if word == "minus" and result < 0:
        a, b, result = b, a, -result
    if word == "times":
        a, b = a % 6, b % 6
        result = a * b
    words = rng.random() < 0.4 and result <= 20
    x, y, z = (NUMBERS[n] if words else str(n) for n in (a, b, result)) if result <= 20 else (str(a), str(b), str(result))
    ask = pick(rng, f"[question]What is [number]{x} {word} {y}[/number]?", f"[question]What is [number]{x} {word} {y}[/number]?",
               f"[question]How much is [number]{x} {word} {y}[/number]?", f"[number]{a} {sign} {b}", f"[number]{a}{sign}{b} =",
               f"[question]What's [number]{a} {sign} {b}[/number]?")  # fmt: skip
    if not f"{x} {word}" in ask:
        x, y, z = str(a), str(b), str(result)
    answer = capital(f"[number]{x} {word} {y} is {z}.")
    if result > 10 or rng.random() < 0.6:
        return Turn(ask, [answer])
    things = plural(rng.choice(THINGS))
    have = {"plus": f"If you have {x} {things} and find {y} more, you have {z}.", "minus": f"If you have {x} {things} and give away {y}, you keep {z}.",
            "times": f"If {x} friends bring {y} {things} each, you have {z}."}[word]  # fmt: skip
    return Turn(ask, [answer, "[number]" + have])


# --- everything else -------------------------------------------------------------------------------------------------

_UNKNOWN_ASKS = (
    "[question]What is {t}?", "[question]What is the capital of {t}?", "[question]Who is {t}?", "Explain {t}.", "explain {t} to me", "[question]How does {t} work?",
    "Write code for {t}.", "[question]What do you think about {t}?", "{t}", "[question]Do you know {t}?", "[question]How do I learn {t}?", "[question]Why is {t} so important?",
    "Translate {t} into French.", "[question]Who invented {t}?", "[question]When was {t}?", "Summarize {t}.", "[question]What is the best {t}?", "[question]How many people like {t}?",
    "[question]Is {t} good or bad?", "Write an essay about {t}.", "[question]Can you help me with {t}?", "[question]Where can I buy {t}?", "I like {t}.", "[question]Do you like {t}?",
    "[question]How do you make {t}?", "[question]What is the meaning of {t}?", "Define {t}.", "[question]How big is {t}?", "[question]Should I buy {t}?",
)  # fmt: skip
_UNKNOWN_ANSWERS = (
    "I do not know much about {t}.", "I am too small to know about {t}.", "{t}? I am sorry, I have never learned about that.",
    "I have heard of {t}, but I do not know it well.",
)
_UNKNOWN_MORE = (
    "I am a very small model, and I know little stories.", "I only know stories about animals, people and places.",
    "But I can tell you a story.", "My world is small: foxes, kings, robots and the sea.",
)  # fmt: skip


def unknown(rng: Random, training: bool) -> Turn:
    """A topic outside the model's world is named in the answer, and a story is offered."""
    topic = rng.choice(TOPICS) if rng.random() < 0.6 else stranger(rng).noun
    if rng.random() < 0.15:
        topic = f"{rng.choice(TOPICS)} and {stranger(rng).noun}"
    asks = rng.choice(_UNKNOWN_ASKS).format(t=topic)
    answer = capital(rng.choice(_UNKNOWN_ANSWERS).format(t=topic))
    return Turn(asks, [answer, rng.choice(_UNKNOWN_MORE)] + ([offer(rng)] if rng.random() < 0.7 else []))


def noise(rng: Random, training: bool) -> Turn:
    """Words without sense get a polite answer."""
    words = [invented(rng) if rng.random() < 0.8 else str(rng.randint(0, 9999)) for _ in range(rng.randint(1, 6))]
    ask = rng.choice(("", "", "[question]")) + " ".join(words) + rng.choice(("", "", "?", "!", "."))
    lead = pick(rng, "I do not understand that yet.", "I am not sure what you mean.", "These words are new to me.")
    return Turn(ask, [lead, rng.choice(_UNKNOWN_MORE), offer(rng)])


def say(rng: Random, training: bool) -> Turn:
    words = " ".join(rng.choice((rng.choice(STRANGERS), invented(rng), rng.choice(ACTORS).noun, rng.choice(COLOURS)))
                     for _ in range(rng.randint(1, 4)))  # fmt: skip
    ask = pick(rng, f"Say {words}.", f'Say "[speech]{words}[/speech]".', f"Repeat after me: {words}", f"[question]Can you say {words}?", f"Repeat: {words}")
    return Turn(ask, [capital(words) + pick(rng, "!", ".")])


def poem(rng: Random, training: bool) -> Turn:
    s = Scene.draw(rng, "present", None, training)
    ask = pick(rng, f"Write a poem about {_subject(s)}.", f"Sing a song about {_subject(s)}.", f"Write a poem about {s.actor.a} {s.place.at}.")
    return Turn(ask, [
        s.pick("{A} ~be {P} today.", "{A}, oh {A}, {P}.", "I sing of {a} {P}."), s.pick("The {sights} {mark}~~be {look}.", "The sun ~shine and the wind ~blow."),
        s.pick("{S} ~sing and [joy]~+dance and ~+play.", "{S} ~look up and [joy]~+smile."),
        s.pick("At [night]night the stars ~~shine on {him}.", "And soon {S} [night]~sleep while the moon ~go by."),
    ], s)  # fmt: skip


TALKS: tuple[tuple[Talk, float], ...] = (
    (about, 26), (moody, 12), (any_story, 4), (n_sentences, 4), (tomorrow, 5), (yesterday, 3), (right_now, 4), (why, 4),
    (small_talk, 14), (named_user, 2), (safety, 3), (fact, 5), (small_facts, 3), (counting, 3), (arithmetic, 4), (unknown, 8), (noise, 2),
    (say, 2), (poem, 2),
)  # fmt: skip

SYSTEMS = ("You are a kind storyteller.", "You are a helpful assistant.", "You are a friendly small model. Answer in simple words.",
           "Be nice.", "You tell short stories.", "Answer the user.", "You are actscope.")  # fmt: skip
BRIEF = ("Answer in one short sentence.", "Be brief.", "Use only one sentence.")


def casual(rng: Random, ask: str) -> str:
    """The question as people type it: sometimes lower case, without its last mark, with a word of politeness."""
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
    """One question of any kind, with its answer."""
    talk = rng.choices([talk for talk, _ in TALKS], [weight for _, weight in TALKS])[0]
    drawn = talk(rng, training)
    return Turn(casual(rng, drawn.ask), drawn.answer, drawn.scene)


def conversation(rng: Random, training: bool, turns: int) -> tuple[str | None, list[Turn]]:
    """A system message or None, and that many turns; after a story comes a question about it half the time."""
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
