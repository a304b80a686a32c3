"""Batched runs of prompts from a file through a captured model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from actscope.capture.session import Capture
from actscope.engines.hf.loading import LoadedModel
from actscope.errors import RecordingPoisoned, SettingsError
from actscope.runtime.decoding import decode_json

#: Called with the number of finished prompts and their total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and its request id.

    Attributes:
        messages: Messages of a chat, in place of a text. Only the model's chat template renders them.
    """

    id: str
    text: str
    messages: tuple[Mapping[str, str], ...] = ()


def read_prompts(lines: Iterable[str], source: str = "prompts") -> list[Prompt]:
    """Parse prompts, one per line.

    All lines are JSON objects `{"id": ..., "prompt": ...}`, `{"text": ...}` or `{"messages": [{"role": ..., "content": ...}]}`
    if the first one starts with "{", and plain text otherwise. Empty lines are skipped.

    Args:
        lines: The lines to parse.
        source: Name of the input, used in error messages.

    Returns:
        The prompts in order. A prompt without an id is named after its line number: `p000001`.

    Raises:
        SettingsError: A line cannot be parsed, an id is repeated, or there is no prompt.
    """
    found: list[Prompt] = []
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    as_json = bool(numbered) and numbered[0][1].lstrip().startswith("{")
    for number, line in numbered:
        name = f"p{number:06d}"
        found.append(_of_json(line, name, f"{source}:{number}") if as_json else Prompt(name, line.rstrip("\r\n")))
    if not found:
        raise SettingsError(f"{source}: there is no prompt in it")
    ids = [prompt.id for prompt in found]
    twice = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise SettingsError(f"{source}: id {twice!r} comes twice")
    return found


def _of_json(line: str, name: str, where: str) -> Prompt:
    value = decode_json(line, dict[str, object], SettingsError, f"{where}: cannot be read")
    request, text = str(value.get("id") or name), value.get("prompt", value.get("text"))
    if "messages" in value and text is None:
        return Prompt(request, "", _messages(value["messages"], where))
    if not isinstance(text, str) or not text:
        raise SettingsError(
            f'{where}: expected {{"id": ..., "prompt": ...}}, {{"text": ...}} or {{"messages": [...]}}, found keys '
            f"{sorted(value)}"
        )
    return Prompt(request, text)


def _messages(found: object, where: str) -> tuple[Mapping[str, str], ...]:
    messages = found if isinstance(found, list) and found else [None]
    if not all(isinstance(one, dict) and set(one) == {"role", "content"} and _texts(one.values()) for one in messages):
        raise SettingsError(f'{where}: messages: expected [{{"role": "user", "content": "..."}}, ...] with texts')
    return tuple(messages)


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def run_prompts(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    capture: Capture,
    *,
    max_tokens: int,
    batch: int,
    progress: Progress,
    chat: bool = False,
) -> None:
    """Run all prompts through the model in batches and generate answers greedily.

    The last token of each answer is never fed to the model, so it is stored with `Capture.record_token`.

    Args:
        loaded: The model and its tokenizer.
        prompts: The prompts to run.
        capture: The running capture of that model.
        max_tokens: Maximum number of new tokens per prompt; 0 only reads the prompts.
        batch: Number of prompts per batch.
        progress: Called after each batch.
        chat: Render each prompt by the model's chat template, as the message of a user. False: texts are sent as they are.

    Raises:
        SettingsError: A prompt does not fit the model's context, or the template cannot render it. Raised before anything runs.
        RecordingPoisoned: The recording has stopped: a run is of no use without it.
    """
    encoded = [(prompt, _encode(loaded, prompt, max_tokens, chat)) for prompt in prompts]
    for start in range(0, len(encoded), batch):
        part = encoded[start : start + batch]
        for group in _unpadded(part) if loaded.calls.batching != "padded" else [part]:
            with capture.request([prompt.id for prompt, _ in group]), torch.inference_mode():
                _run(loaded, group, capture, max_tokens)
                _check_recording(capture)
        progress(min(start + batch, len(encoded)), len(encoded))


def _check_recording(capture: Capture) -> None:
    if capture.failure is not None:
        raise RecordingPoisoned(f"{capture.path}: {capture.failure}") from capture.failure


def _encode(loaded: LoadedModel, prompt: Prompt, max_tokens: int, chat: bool) -> list[int]:
    ids = _rendered(loaded, prompt) if chat else list(loaded.tokenizer(_text_of(prompt))["input_ids"])
    room = loaded.max_context - max_tokens
    if not 0 < len(ids) <= room:
        raise SettingsError(
            f"prompt {prompt.id!r} has {len(ids)} tokens: expected 1 to {room}, so that {max_tokens} more fit {loaded.name}"
        )
    return ids


def _text_of(prompt: Prompt) -> str:
    if prompt.messages:
        raise SettingsError(
            f"prompt {prompt.id!r} has messages, which need the model's chat template: leave --no-chat out"
        )
    return prompt.text


def _rendered(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """Return the tokens of a chat, up to where the model's answer begins."""
    messages = [dict(message) for message in prompt.messages] or [{"role": "user", "content": prompt.text}]
    try:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's maker, and may raise anything
        raise SettingsError(
            f"prompt {prompt.id!r}: the chat template of {loaded.name} refuses it: {error}; --no-chat sends texts as they are"
        ) from error
    return list(loaded.tokenizer(str(text), add_special_tokens=False)["input_ids"])


def wants_chat(loaded: LoadedModel, given: bool | None, recorded: bool | None = None) -> bool:
    """Return whether prompts are rendered by the chat template.

    Args:
        loaded: The model.
        given: The user's choice; None: as the recording that is continued, else where the model has a template.
        recorded: What the recording that is continued has; None for a new one.

    Raises:
        SettingsError: The model has no template, or the recording was made the other way.
    """
    has_template = loaded.tokenizer.chat_template is not None
    if given and not has_template:
        raise SettingsError(f"--chat: {loaded.name} has no chat template; leave it out, and texts are sent as they are")
    if given is not None and recorded is not None and given != recorded:
        made = "--chat" if recorded else "--no-chat"
        raise SettingsError(f"--resume: the recording was made with {made}; give that, or leave it out")
    return next(one for one in (given, recorded, has_template) if one is not None)


def _unpadded(part: Sequence[tuple[Prompt, list[int]]]) -> list[list[tuple[Prompt, list[int]]]]:
    """Return groups of prompts of one length: a recurrent state would take up their padding."""
    groups: dict[int, list[tuple[Prompt, list[int]]]] = {}
    for prompt, ids in part:
        groups.setdefault(len(ids), []).append((prompt, ids))
    return list(groups.values())


def _run(loaded: LoadedModel, part: Sequence[tuple[Prompt, list[int]]], capture: Capture, max_tokens: int) -> None:
    width = max(len(ids) for _, ids in part)
    pad = _pad_id(loaded)
    ids = torch.tensor([[pad] * (width - len(text)) + text for _, text in part], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for _, text in part], device=loaded.device)
    if not max_tokens:
        known: dict[str, torch.Tensor] = {"attention_mask": mask} if loaded.calls.takes_mask else {}
        if loaded.calls.takes_positions:
            known["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        loaded.model(input_ids=ids, use_cache=False, **known, **loaded.last_logits_only)
        return
    ends = sorted(loaded.eos_ids)
    out = loaded.model.generate(  # type: ignore[operator]  # GenerationMixin, which transformers' types hide
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=pad,
        stopping_criteria=[
            lambda ids, scores, **_: torch.full((len(ids),), capture.failure is not None, device=ids.device)
        ],
    )
    if capture.failure is not None:
        return
    for (prompt, text), answer in zip(part, out[:, width:].tolist(), strict=True):
        n = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
        capture.record_token(answer[n - 1], request=prompt.id, position=len(text) + n - 1)


def _pad_id(loaded: LoadedModel) -> int:
    for given in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if given is not None:
            return int(given)
    return 0
