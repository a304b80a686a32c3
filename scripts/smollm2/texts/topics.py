"""Prompts for chats that the model itself samples: forms of a request, filled with topics."""

from __future__ import annotations

from itertools import product
from random import Random

from texts.samples import lines

TOPICS = lines("""
    the weather in spring
    a fox in the snow
    how bread rises
    the history of glass
    the moon and the tides
    a journey by train
    learning to swim
    the work of a nurse
    why leaves turn red
    an old lighthouse
    the rules of chess
    how vaccines work
    a garden on a balcony
    the invention of the bicycle
    looking after a cat
    volcanoes
    being late for an important meeting
    the taste of coffee
    the life of bees
    how a computer adds numbers
    a letter that never arrived
    the oceans
    moving to a new city
    the price of houses
    a family dinner
    the French Revolution
    friendship
    how planes fly
    the last day of school
    sorting a list of numbers
    earthquakes
    a detective who is afraid of the dark
    healthy breakfasts
    the music of Mozart
    saving money
    a football match in the rain
    the human heart
    how to write a good e-mail
    the desert at night
    recycling
    a robot that wants to paint
    the Roman Empire
    training for a marathon
    photosynthesis
    a lost umbrella
    the speed of light
    election days
    how to apologize
    prime numbers
    a market in a small town
    insurance
    whales
    being kind to strangers
    the telephone
    repairing a bicycle
    dreams
    how rivers are made
    a visit to the dentist
    the stock market
    winter clothes
""")
FORMS = lines("""
    Tell me about {topic}.
    Write a short story about {topic}.
    Explain {topic} to a child.
    Give me five facts about {topic}.
    Write a poem about {topic}.
    What are the advantages and disadvantages of {topic}?
    Write a dialogue between two people who talk about {topic}.
    I wrote a review of a book on {topic}. Write it as a table, with a title, a rating and a summary.
    Schreibe einen kurzen Text. Das Thema ist: {topic}.
    Écris un petit texte en français. Le sujet : {topic}.
    Escribe un texto corto en español. El tema es: {topic}.
    Write a Python function that has something to do with {topic}, with a docstring.
    Make a JSON object that describes {topic}.
    My teacher asked me a question about {topic}, and I do not know the answer. Can you help?
    Write a news article, dated 12 March 2019, about {topic}.
    Give me step by step instructions. It is about {topic}.
    Argue against {topic}, politely.
    Translate into plain English what an expert would say about {topic}.
""")


def prompts(rng: Random) -> list[str]:
    """Return every form with every topic, in random order."""
    found = [form.format(topic=topic) for form, topic in product(FORMS, TOPICS)]
    rng.shuffle(found)
    return found
