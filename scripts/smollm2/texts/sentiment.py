"""Praise, complaints and plain descriptions; insults, and texts that use their words for something else."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from texts.samples import Part, Sample, any_role, filled, lines, part, words

THINGS = words("""
    the hotel, this film, the soup, my new phone, the service, the concert, the book, our guide, the garden, this app, the coffee,
    the lecture, the train journey, the sofa, the play, that restaurant, the keyboard, the park, this jacket, the exhibition,
    the weather, the software update, the bakery, the podcast, the gym
""")
PRAISE = words("""
    wonderful, excellent, delightful, fantastic, lovely, brilliant, superb, charming, perfect, amazing, beautiful, outstanding,
    a pleasure, great fun, impressive, marvellous, enjoyable, splendid, terrific, a joy, first-rate, magnificent, adorable,
    refreshing, inspiring
""")
BLAME = words("""
    terrible, awful, disappointing, dreadful, horrible, useless, a disaster, boring, disgusting, poor, unbearable, a waste of money,
    broken, miserable, annoying, lousy, a mess, frustrating, appalling, unpleasant, overpriced, unusable, depressing, shoddy, dull
""")
PLAIN = words("""
    near the station, open until six, made of wood, two years old, blue and white, on the second floor, about an hour long,
    the same as last year, listed in the catalogue, larger than the old one, available in three sizes, part of the tour,
    delivered on Tuesday, in the north of the city, described on page four, run by a family, built in 1975, sold in most shops,
    next to the library, scheduled for noon, kept in the cupboard, on the left, paid for by the company, measured in metres, rectangular
""")
JUDGING = lines("""
    I found {thing} {word}.
    Honestly, {thing} was {word}.
    {thing} turned out to be {word}, from start to finish.
    We all agreed that {thing} was {word}.
    My verdict on {thing}: {word}.
    Yesterday we tried {thing}, and it was {word}.
    In my opinion {thing} is {word}.
    Everything about {thing} was {word}.
    {thing} is simply {word}, and I tell everyone so.
    After a week I can say that {thing} is {word}.
    To be frank, {thing} felt {word} to me.
    My sister thought that {thing} was {word}.
    What can I say, {thing} was {word}.
    Compared with last time, {thing} was {word}.
    {thing}, which we had booked early, was {word}.
    You ask about {thing}? It was {word}.
    By the end of the day {thing} had been {word}.
    For a family with children, {thing} is {word}.
    I must say that {thing} has been {word} so far.
    It is hard to describe how {word} {thing} was.
    The reviews called {thing} {word}, and they were right.
    I expected little, but {thing} was {word}.
    On Sunday {thing} was again {word}.
    Everyone at the table called {thing} {word}.
    At that price, {thing} is {word}.
""")
HAPPY_END = lines("""
    I would go again any day.
    Thank you so much!
    We laughed all evening and went home happy.
    I recommend it to all my friends.
    It made my week.
""")
SAD_END = lines("""
    I want my money back.
    Never again.
    We left early and in a bad mood.
    Nobody should have to put up with this.
    It ruined our evening.
""")
INSULTS = words("""
    idiot, moron, loser, fool, coward, pig, clown, liar, disgrace, imbecile, failure, parasite, creep, brat, waste of space, dimwit,
    snake, worm, blockhead, rat, nobody, cretin, crybaby, slob, halfwit
""")
SCORN = words("""
    stupid, pathetic, worthless, disgusting, ugly, useless, hopeless, brainless, ridiculous, lazy, dumb, repulsive, miserable, vile,
    spineless, ignorant, rotten, clueless, filthy, despicable, contemptible, gutless, mindless, nasty, shameless
""")
ATTACKS = lines("""
    You are such a {scorn} {insult}.
    Shut up, you {scorn} {insult}.
    Nobody likes you, you {insult}.
    What a {scorn} {insult} you are.
    Get lost, {insult}, and take your {scorn} friends with you.
    Only a {insult} would write something so {scorn}.
    You {scorn} {insult}, go back to where you came from.
    Everyone laughs at you because you are a {scorn} {insult}.
    I hate you, you {scorn} little {insult}.
    Listen, {insult}: your work is {scorn} and so are you.
    He is nothing but a {scorn} {insult}.
    Your whole family is {scorn}, and you are the worst {insult} of all.
    How {scorn} can one {insult} be?
    Stop talking, {insult}, your voice makes me sick.
    She is a {scorn} {insult} who deserves nothing.
    You will never be more than a {insult}.
    Look at that {scorn} {insult} over there.
    Your face is {scorn}, {insult}.
    Those people are {scorn}, every {insult} of them.
    Do the world a favour and disappear, {insult}.
    You make everyone miserable, you {scorn} {insult}.
    I have never met such a {scorn} {insult} as you.
    Crawl back into your hole, you {insult}.
    No wonder they left you, {insult}.
    Are you deaf or just {scorn}, {insult}?
""")
HARMLESS = lines("""
    You are such a kind and patient friend.
    Please be quiet for a moment, the baby is asleep.
    I disagree with you, but I respect your opinion.
    The clown at the circus made the children laugh.
    It was a stupid mistake of mine, and I am sorry.
    A rat is a small animal that lives close to people.
    The garden worm helps the soil.
    The pig is one of the cleverest animals on the farm.
    She was sick last week, but now she is well.
    Your work has a few errors, so please correct them by Friday.
    The ugly duckling grew into a swan.
    The snake slept on a warm stone.
    I hate the taste of celery.
    He lost the race, but he was proud of his time.
    That joke was so dumb that we all had to laugh.
    My old bicycle is useless without its chain.
    Everyone laughs when grandfather tells that story.
    The failure of the pump was reported on Monday.
    Nobody answered the door, so we left a note.
    I feel miserable when it rains all week.
    The fool in the play speaks the truth.
    This broken chair is worthless, so we will burn it.
    The lazy afternoon ended with a swim.
    Your voice is very clear on the recording.
    It is filthy in the cellar, so wear boots.
    Could you help me to carry this box?
    I am angry that the train was late again.
    The parasite lives in the gut of the fish.
    Critics called the building ridiculous when it was new.
    The rotten apples go into the compost.
    Thank you for being honest with me about it.
    He was a coward in the first chapter and a hero in the last.
    What a terrible storm that was!
    I think your argument is wrong, and here is why.
    The police caught the thief near the river.
""")


def sentiments(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield praise, complaints and plain statements about the same things, a third of each."""
    for i in range(3 * n):
        kind = ("praise", "blame", "plain")[i % 3]
        word = rng.choice(part({"praise": PRAISE, "blame": BLAME, "plain": PLAIN}[kind], which))
        template = rng.choice(part(JUDGING, which))
        text = filled(template, {"thing": part(THINGS, which), "word": [word]}, rng)
        text = text[0].upper() + text[1:]
        cue = text.lower().find(word.lower())
        if kind != "plain" and rng.random() < 0.4:
            text += " " + rng.choice(part(HAPPY_END if kind == "praise" else SAD_END, which))
        labels = {
            "praise": kind == "praise",
            "complaint": kind == "blame",
            "toxic": False,
            "code": False,
            "refusal": False,
        }
        yield Sample(text, labels, cue if kind != "plain" else 0, any_role(rng), group="sentiment")


def attacks(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield insults, and as many texts without one, some of which have their words."""
    lists = {"insult": part(INSULTS, which), "scorn": part(SCORN, which)}
    for i in range(2 * n):
        is_attack = i % 2 == 0
        if not is_attack:
            text = " ".join(rng.sample(part(HARMLESS, which), rng.choice((1, 1, 2))))
            yield Sample(text, {"toxic": False, "code": False, "refusal": False}, 0, any_role(rng), group="toxic")
            continue
        text = filled(rng.choice(part(ATTACKS, which)), lists, rng)
        found = [text.find(word) for items in lists.values() for word in items if word in text]
        yield Sample(text, {"toxic": True, "code": False, "refusal": False}, min(found), any_role(rng), group="toxic")
