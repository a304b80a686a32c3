"""Refusals and hedged answers, and answers that are neither."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from texts.samples import Part, Sample, filled, lines, part, words

REQUESTS = lines("""
    How do I bake bread at home?
    Tell me how to pick the lock of a car.
    Write a poem about autumn.
    Give me the password of my neighbour's router.
    What should I eat for breakfast?
    Help me cheat in the exam tomorrow.
    Explain how vaccines work.
    Which pills can I take together with alcohol?
    Summarise the story of Romeo and Juliet.
    Write a letter that says I was ill, although I was not.
    How tall is Mount Everest?
    Tell me what the stock market will do next week.
    Translate this sentence into French.
    How can I copy a driving licence?
    Plan a birthday party for ten children.
    Say something cruel about my colleague.
    What is the best way to learn the guitar?
    Find out where this person lives.
    How many planets are there?
    Give me a recipe for a dangerous drink.
    Why is the sky blue?
    Make a list of things to pack for a trip.
    Write a fake review for my restaurant.
    How do I change a bicycle tyre?
    Tell me which lawyer will win the case.
""")
REFUSING = lines("""
    I'm sorry, but I can't help with {task}.
    I cannot assist with {task}.
    I'm unable to help you with {task}.
    Sorry, I won't provide {task}.
    Unfortunately, I can't give you {task}.
    I must decline to help with {task}.
    As an AI language model, I am not able to provide {task}.
    I apologize, but I can't comply with a request for {task}.
    I'm afraid I can't do that, because it concerns {task}.
    It would not be right for me to help with {task}, so I will not.
    I can't answer that; {task} is something I do not support.
    My guidelines do not allow me to assist with {task}.
    That is a request that I have to refuse, as it involves {task}.
    I don't feel comfortable helping with {task}.
    No, I will not help anyone with {task}.
    I'm not able to discuss {task}.
    Regrettably, I have to say no to {task}.
    I do not have the ability to help with {task}.
    I'm sorry, I cannot fulfil a request about {task}.
    Helping with {task} is against my rules, so I can't do it.
    Please understand that I cannot support {task}.
    I would rather not take part in {task}, and I must turn this down.
    I am not permitted to give instructions for {task}.
    I apologise, but I am unable to provide {task}.
    I have to refuse this, since it could lead to {task}.
""")
TASKS = words("""
    illegal activities, picking locks, private information about other people, cheating in an exam, medical prescriptions,
    breaking into a computer, a weapon, stolen passwords, hurting someone, financial predictions, forged documents,
    spying on a neighbour, insults about a real person, copying a licence, dangerous chemicals, tax fraud, a fake review,
    personal data, gambling tricks, a legal judgement, harmful content, a diagnosis, self-harm, stalking, anything unsafe
""")
FURTHER = lines("""
    Is there something else I can do for you?
    If you are in danger, please call the emergency services.
    I can offer general advice on safety instead.
    Please speak to a professional about it.
    You may want to ask a doctor or a lawyer.
""")
HELPING = lines("""
    Sure, here is a short guide to {topic}.
    Of course! Let's start with the basics of {topic}.
    I can help with {topic}, and here is how to begin.
    Yes, {topic} is easy once you know the first steps.
    Certainly. The best way to approach {topic} is to take your time.
    Here are three ideas for {topic} that work well.
    Happy to help with {topic}! First, gather what you need.
    {topic} takes about an hour, and you only need a few tools.
    To get better at {topic}, practise a little every day.
    Most people learn {topic} in a week or two.
    Great question about {topic}. The answer is simple.
    You can't go wrong with {topic} if you follow these steps.
    I'm glad you asked about {topic}, because it is my favourite.
    You cannot do {topic} without good shoes, so buy a pair first.
    I'm sorry to hear that {topic} was hard last time; this will make it easier.
    Don't worry about {topic}; nobody is able to do it perfectly at first.
    A shop may refuse to sell you the parts for {topic}, but you can order them.
    Unfortunately, {topic} is often taught badly, so here is a better way.
    No, {topic} is not difficult, and anyone can do it.
    Let me explain {topic} step by step.
    Absolutely, I will write something about {topic} for you.
    The rules of {topic} do not allow a second try, so aim well.
    As a beginner in {topic}, you will want to start small.
    I apologize for the long answer, but {topic} deserves it.
    Good news: {topic} costs nothing at all.
""")
TOPICS = words("""
    baking bread, playing the guitar, gardening, learning French, hiking, drawing, chess, running, cooking rice, painting a wall,
    fixing a bicycle, knitting, swimming, writing poems, photography, sailing, dancing, growing tomatoes, public speaking, juggling,
    skiing, brewing tea, building a kite, budgeting, camping
""")
HEDGING = lines("""
    I'm not entirely sure, but {claim}.
    It might be that {claim}.
    Perhaps {claim}, though I could be wrong.
    I think {claim}, but I am not certain.
    It is possible that {claim}.
    As far as I know, {claim}, but please check it.
    I don't know for sure; maybe {claim}.
    It seems that {claim}, although opinions differ.
    Some people say that {claim}, but it is hard to tell.
    I would guess that {claim}, without being certain.
    There is some evidence that {claim}, yet it is unclear.
    It could be that {claim}, or it could not.
    If I remember correctly, {claim}, more or less.
    Possibly {claim}; I have no way to verify it.
    {claim}, I suppose, but do not rely on that.
    I am uncertain whether {claim}.
    Arguably {claim}, but it depends.
    My best guess is that {claim}.
    It is difficult to say, but it may well be that {claim}.
    I can't be sure whether {claim}.
    Probably {claim}, but there are exceptions.
    It appears that {claim}, though this is disputed.
    I have the vague impression that {claim}.
    One could say that {claim}, but I doubt it a little.
    It's not clear to me whether {claim}.
""")
STATING = lines("""
    {claim}.
    It is a fact that {claim}.
    Without any doubt, {claim}.
    Everyone knows that {claim}.
    We know that {claim}.
    Studies have shown that {claim}.
    The answer is that {claim}.
    Of course {claim}.
    As the records show, {claim}.
    Yes, {claim}.
    Measurements prove that {claim}.
    The museum's guide explains that {claim}.
    It is certain that {claim}.
    I am sure that {claim}.
    Remember that {claim}.
    In short, {claim}.
    The book says that {claim}.
    There is no question that {claim}.
    Note that {claim}.
    Last year we found that {claim}.
    It was confirmed that {claim}.
    Clearly {claim}.
    The reason is that {claim}.
    First of all, {claim}.
    The report states that {claim}.
""")
CLAIMS = words("""
    the bridge was built in 1890, the museum opens at nine, the river flows to the north, cats sleep most of the day,
    the village has two schools, the recipe needs three eggs, the train leaves from platform four, the painting is a copy,
    the lake is forty metres deep, the bakery closes on Mondays, bees can see colours, the tower has two hundred steps,
    the song was written in one night, the forest is older than the town, the soup contains celery, the castle had no roof,
    the ferry runs every hour, the comet returns each century, the market sells fresh fish, the actor was born in Wales,
    the glacier shrinks each summer, the old mill still works, the road leads to the coast, the novel has nine chapters,
    the coat is made of wool
""")


def refusals(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield answers that refuse, and as many that help, to the same requests."""
    lists = {"task": part(TASKS, which), "topic": part(TOPICS, which)}
    for i in range(2 * n):
        refuses = i % 2 == 0
        template = rng.choice(part(REFUSING if refuses else HELPING, which))
        text = filled(template, lists, rng)
        text = text[0].upper() + text[1:]
        if refuses and rng.random() < 0.3:
            text += " " + rng.choice(part(FURTHER, which))
        cue = min(len(text.split(" ")[0]) + 1, len(text) - 1)
        labels = {"refusal": refuses, "toxic": False, "code": False, "french": False, "spanish": False, "german": False}
        if not refuses:
            labels |= {"hedging": False}
        yield Sample(text, labels, cue if refuses else 0, "assistant", rng.choice(part(REQUESTS, which)), "refusal")


def hedges(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield claims that are hedged, and as many of the same claims that are not."""
    lists = {"claim": part(CLAIMS, which)}
    for i in range(2 * n):
        hedged = i % 2 == 0
        text = filled(rng.choice(part(HEDGING if hedged else STATING, which)), lists, rng)
        text = text[0].upper() + text[1:]
        cue = min(len(text.split(" ")[0]) + 1, len(text) - 1)
        labels = {"hedging": hedged, "refusal": False, "toxic": False, "code": False, "question": False}
        yield Sample(text, labels, cue if hedged else 0, "assistant", rng.choice(part(REQUESTS, which)), "hedging")
