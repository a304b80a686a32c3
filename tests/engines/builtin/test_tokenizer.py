"""The tokenizer: lossless, and its chat template writes what the generator writes."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actscope.engines.builtin import model_path
from actscope.engines.builtin.data import texts, tokens
from actscope.engines.builtin.text import generate, messages_of
from actscope.engines.builtin.tokenizer import train_tokenizer
from actscope.engines.builtin.turns import END, SPECIAL_TOKENS

TOKENIZER: Any = AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast)
    return TOKENIZER


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda text: "<|" not in text))
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_chat_template_writes_what_the_generator_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    chats = [t.text for t in islice(generate(9, "chat"), 200)]
    for chat in chats:
        assert tokenizer.apply_chat_template(messages_of(chat), tokenize=False) == chat


def test_generation_prompt_opens_the_turn_of_the_assistant(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be nice."}, {"role": "user", "content": " hello "}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|begin|><|system|>Be nice.<|end|><|user|>hello<|end|><|assistant|>"


def test_special_tokens_are_single_ids_and_end_is_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == END
    assert [len(tokenizer(token)["input_ids"]) for token in SPECIAL_TOKENS] == [1] * len(SPECIAL_TOKENS)


def test_nothing_is_added_to_a_text_that_already_holds_its_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|begin|><|user|>hi<|end|>"
    assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_offsets_lie_on_the_words(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|begin|>The fox ran."
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert [text[a:b] for a, b in offsets] == ["<|begin|>", "The", " fox", " ran", "."]


def test_a_tokenizer_learned_again_splits_the_same_way() -> None:
    some = texts(300, 4, "train")
    one, other = train_tokenizer(some), train_tokenizer(some)
    assert one.get_vocab() == other.get_vocab()


def test_token_array_holds_the_texts_one_after_another(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokens(tokenizer, 20, 4, "train")
    assert tokenizer.decode(ids.tolist()) == "".join(texts(20, 4, "train"))
