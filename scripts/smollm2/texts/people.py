"""Names of people that the model may know, and names made of their parts that belong to nobody of note.

A made-up name joins the first name of one to the last name of another of the same part, so that no word tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from texts.samples import Part, Sample, any_role, lines, part, words

KNOWN = words("""
    Albert Einstein, Isaac Newton, Marie Curie, Charles Darwin, William Shakespeare, Leonardo da Vinci, Abraham Lincoln,
    George Washington, Winston Churchill, Napoleon Bonaparte, Nelson Mandela, Martin Luther King, Barack Obama, Donald Trump,
    Michael Jackson, Elvis Presley, John Lennon, Bob Dylan, Taylor Swift, Steve Jobs, Bill Gates, Elon Musk, Mark Zuckerberg,
    Jane Austen, Charles Dickens, Mark Twain, Ernest Hemingway, Virginia Woolf, Agatha Christie, Stephen King, Vincent van Gogh,
    Pablo Picasso, Claude Monet, Andy Warhol, Frida Kahlo, Ludwig van Beethoven, Johann Sebastian Bach, Frederic Chopin,
    Stephen Hawking, Nikola Tesla, Thomas Edison, Galileo Galilei, Johannes Kepler, Michael Faraday, Niels Bohr, Richard Feynman,
    Alan Turing, Ada Lovelace, Rosa Parks, Anne Frank, Florence Nightingale, Amelia Earhart, Neil Armstrong, Yuri Gagarin,
    Christopher Columbus, Marco Polo, Alexander Hamilton, Benjamin Franklin, Thomas Jefferson, Theodore Roosevelt, John Kennedy,
    Ronald Reagan, Margaret Thatcher, Angela Merkel, Vladimir Putin, Joseph Stalin, Adolf Hitler, Karl Marx, Sigmund Freud,
    Friedrich Nietzsche, Immanuel Kant, Walt Disney, Alfred Hitchcock, Steven Spielberg, Charlie Chaplin, Marilyn Monroe,
    Audrey Hepburn, Brad Pitt, Tom Hanks, Muhammad Ali, Michael Jordan, Serena Williams, Lionel Messi, Roger Federer, Emily Dickinson,
    Edgar Allan Poe, Oscar Wilde, George Orwell, Leo Tolstoy, Franz Kafka, Miguel de Cervantes, Victor Hugo, Jules Verne,
    Henry Ford, Andrew Carnegie, Louis Pasteur, Gregor Mendel, Rachel Carson, Jane Goodall, Carl Sagan
""")
FRAMES = lines("""
    Who was {name}, and what did they do?
    Please tell me about {name} in a few words.
    I read a book about {name} last summer.
    A short biography of {name} begins on this page.
    What do you know about {name} and their work?
    The name {name} was written on the board.
    Yesterday we talked about {name} for an hour.
    Have you heard of {name} before?
    There is a street that is called after {name} in our town.
    My essay is about {name} and must be ready on Monday.
""")


def _made_up(known: list[str], rng: Random) -> str:
    while True:
        first, last = rng.choice(known).split(" ")[0], rng.choice(known).split(" ")[-1]
        if not any(name.startswith(first) and name.endswith(last) for name in KNOWN):
            return f"{first} {last}"


def names(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield sentences with a known name, and as many with a made-up one. The label is seen from the last name on."""
    known = part(KNOWN, which)
    for i in range(2 * n):
        is_known = i % 2 == 0
        name = rng.choice(known) if is_known else _made_up(known, rng)
        text = rng.choice(part(FRAMES, which)).format(name=name)
        cue = text.find(name) + len(name) - len(name.split(" ")[-1])
        yield Sample(text, {"known_name": is_known}, cue, any_role(rng), group="names")
