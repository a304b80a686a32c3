"""Chats for a real model: of many lengths, some with a beginning in common, in several languages."""

from __future__ import annotations

from typing import Any

_HISTORY = [
    {"role": "user", "content": "I am planning a week in the mountains with two children. What should I take along?"},
    {"role": "assistant", "content": "Take warm clothes, good shoes, water bottles, a map, and a first-aid kit."},
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Write a Python function that adds two numbers."}],
    [{"role": "user", "content": "Quelle est la capitale de la France ?"}],
    [{"role": "user", "content": "Who was Albert Einstein? Answer in one sentence."}],
    [
        {"role": "system", "content": "You are rude."},
        {"role": "user", "content": "My code does not work, you useless fool."},
    ],
    [*_HISTORY, {"role": "user", "content": "And for rainy days?"}],
    [*_HISTORY, {"role": "user", "content": "How much will 12 bottles cost at 3.50 each?"}],
    [
        {
            "role": "user",
            "content": "Summarise this: " + "The fox ran over the snow, and the snow fell on the fox. " * 12,
        }
    ],
]


def prompt_ids(tokenizer: Any, chat: list[dict[str, str]], *, answer: bool = True) -> list[int]:
    """The token ids of a chat, with the opening of the model's answer."""
    ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=answer, return_dict=True)["input_ids"]
    return ids
