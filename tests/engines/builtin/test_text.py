"""The generated texts: deterministic, exactly labelled, split without overlap."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from itertools import islice, pairwise

import pytest

from actscope.engines.builtin import LABELS, NAME, labelled
from actscope.engines.builtin.text import generate, main, messages_of
from actscope.engines.builtin.texts.lexicon import ACTORS, PLACES, article, held_out, plural
from actscope.engines.builtin.texts.marks import Text, Writer, capital, uncapital
from actscope.engines.builtin.texts.verbs import conjugate


@pytest.fixture(scope="module")
def some_texts() -> list[Text]:
    return list(islice(generate(3), 800))


def test_same_seed_gives_same_texts() -> None:
    """Also in a process that hashes strings otherwise."""
    code = "from itertools import islice; from actscope.engines.builtin.text import generate; print(*islice(generate(5), 50))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout == " ".join(map(str, islice(generate(5), 50))) + "\n"


def test_other_seed_gives_other_texts() -> None:
    assert {t.text for t in islice(generate(5, "story"), 50)} != {t.text for t in islice(generate(6, "story"), 50)}


def test_no_text_is_in_both_splits() -> None:
    """Neither for equal nor for different seeds."""
    train = {t.text for seed in (1, 2) for t in islice(generate(seed, split="train"), 500)}
    heldout = {t.text for seed in (1, 3) for t in islice(generate(seed, split="heldout"), 60)}
    assert not train & heldout


def test_training_stories_never_bring_held_out_pairs_together() -> None:
    actors = {actor.noun: actor for actor in ACTORS}
    pattern = re.compile(r"^<\|begin\|>.{0,25}?\b(" + "|".join(actors) + r")\b (?:is|was|lived?s?) (\w+ [\w ]+?)[.]")
    places = {f"{place.prep} {place.noun}": place for place in PLACES}
    pairs = [m.groups() for t in islice(generate(1, "story"), 1200) if (m := pattern.match(t.text))]
    known = [(actors[who], places[where]) for who, where in pairs if where in places]
    assert len(known) > 50
    assert not any(held_out(who, where) for who, where in known)


def test_held_out_stories_do_bring_them_together() -> None:
    pairs = {(a.noun, p.noun.split()[-1]) for a in ACTORS for p in PLACES if held_out(a, p)}
    texts = [t.text for t in islice(generate(1, "story", "heldout"), 60)]
    assert any(re.search(rf"\b{who}\b.*\b{where}\b", text) for text in texts for who, where in pairs)


def test_spans_lie_within_the_text_in_order_and_hold_something(some_texts: list[Text]) -> None:
    for text in some_texts:
        assert tuple(text.spans) == LABELS
        for spans in text.spans.values():
            assert all(0 <= start < end <= len(text.text) for start, end in spans)
            assert all(one[1] <= other[0] for one, other in pairwise(spans))


@pytest.mark.parametrize(
    ("label", "pattern"),
    [
        (
            "danger",
            r"wolf|storm|fire|flood|snake|thie|danger|rock|water|wave|light|wind|flame|smoke|help|ice|hole|step|teeth|ground|thunder|knife|near",
        ),
        ("future", r"will|going"),
        ("joy", r"happy|glad|smil|laugh|danc|joy|proud|nice|wonderful|clap|friend|good|well|both|play|sad any"),
        ("night", r"night|dark|moon|star|sleep|sleep|slept|tired|shone|shine"),
        ("anger", r"angry|Anger|hit|shout|back|break|face"),
        ("number", r"\d|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|teen|twenty|zero"),
    ],
)
def test_most_spans_hold_the_words_of_their_label(some_texts: list[Text], label: str, pattern: str) -> None:
    spans = [t.text[start:end] for t in some_texts for start, end in t.spans[label]]
    assert len(spans) > 30
    assert sum(bool(re.search(pattern, span, re.IGNORECASE)) for span in spans) >= 0.9 * len(spans)


def test_will_is_always_labelled_future(some_texts: list[Text]) -> None:
    tomorrow = [text for text in some_texts if "<|assistant|>Tomorrow" in text.text]
    assert len(tomorrow) > 5
    for text in tomorrow:
        assert any(text.text[a:b].startswith("will") for a, b in text.spans["future"])


def test_speech_is_what_stands_in_quotes(some_texts: list[Text]) -> None:
    spans = [(t.text, span) for t in some_texts for span in t.spans["speech"]]
    assert len(spans) > 100
    assert all(text[start - 1] == '"' and text[end] in '",!?' for text, (start, end) in spans)


def test_turns_cover_a_chat_from_the_first_question_to_its_end(some_texts: list[Text]) -> None:
    chats = [t for t in some_texts if messages_of(t.text)]
    assert len(chats) > 500
    for chat in chats:
        turns = sorted(chat.spans["user_turn"] + chat.spans["assistant_turn"])
        assert all(chat.text[a:b].endswith("<|end|>") for a, b in turns)
        assert turns[-1][1] == len(chat.text)


def test_a_sleeping_wolf_is_no_danger() -> None:
    texts = [t for t in islice(generate(2, "story"), 1500) if "wolf slept behind the fence" in t.text]
    assert texts
    for text in texts:
        at = text.text.index("wolf slept behind the fence")
        assert not any(start <= at < end for start, end in text.spans["danger"])


def test_no_template_syntax_is_left_over(some_texts: list[Text]) -> None:
    assert not [t.text for t in some_texts if re.search(r"[\[\]{}~]|  | [.,!?]", t.text)]


def test_labels_opened_in_a_sentence_end_with_it_and_never_begin_before_their_mark() -> None:
    writer = Writer()
    writer.passage(['the [animal]fox [past]ran. She hid. "[speech]Oh! Oh![/speech]" [past]said it.'])
    text = writer.text()
    found = {label: [text.text[a:b] for a, b in spans] for label, spans in text.spans.items() if spans}
    assert found == {"animal": ["fox ran."], "past": ["ran.", "said it."], "speech": ["Oh! Oh!"]}


def test_capitals_see_through_marks_and_quotes() -> None:
    assert capital('"[speech]come') == '"[speech]Come'
    assert uncapital("[question]What is") == "[question]what is"


@pytest.mark.parametrize(
    ("tense", "expected"),
    [
        ("past", "she [past]went and [past]cried; they [past]were; he [past]tried"),
        ("present", "she goes and cries; they are; he tries"),
        ("future", "she [future]will go and cry; they [future]will be; he [future]will try"),
    ],
)
def test_verbs_take_the_tense(tense: str, expected: str) -> None:
    assert conjugate("she ~go and ~+cry; they ~~be; he ~try", tense) == expected


def test_articles_and_plurals() -> None:
    assert [article(word) for word in ("owl", "fox", "unicorn")] == ["an", "a", "a"]
    assert [plural(word) for word in ("fox", "wolf", "fairy", "boy", "cherry")] == [
        "foxes", "wolves", "fairies", "boys", "cherries",
    ]  # fmt: skip


def test_unknown_kind_or_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        next(generate(1, split="test"))


def test_command_writes_json_lines_with_every_label() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        main(["--n", "5", "--seed", "7"])
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["text"] for row in rows] == [t.text for t in islice(generate(7), 5)]
    assert all(set(row["spans"]) == set(LABELS) for row in rows)


def test_labelled_gives_as_many_texts_as_asked() -> None:
    assert len(list(labelled(7, seed=1))) == 7
    assert NAME == "actscope/builtin"
