"""The ways in which a model is run: plain, left-padded, generating, a prompt in chunks over a cache, and one with an image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from actscope.bench.models.configs import BOS, PAD, VOCABULARY

CaseName = Literal["plain", "left_padded", "generate", "chunked", "image"]
CASES: tuple[CaseName, ...] = ("plain", "left_padded", "generate", "chunked", "image")
LANES = ("a", "b")
_TIME, _LENGTHS, _CHUNKS, _NEW = 11, (5, 9), (5, 4, 2), 5
#: Most patches of an image: the attention of a vision part takes their square.
_MOST_PATCHES = 1600
#: Ids below are special tokens; small vocabularies of parts (image, audio) begin high.
_FIRST_ID, _LAST_ID = 3, VOCABULARY - 28
#: Shape of the tokens of the plain pass.
SHAPE = (len(LANES), _TIME)


@dataclass(frozen=True, slots=True)
class CaseRun:
    """What one case fed and gave.

    Attributes:
        tokens: Token ids by lane, one per position that was computed.
        skipped: Columns before position 0, by lane (padding on the left).
        text: Generated token ids, [lanes, columns], or None.
        lanes: Names of the requests.
        renamed: Whether rows may be of a request "a#2": the product counts the two texts of an encoder-decoder apart.
    """

    tokens: tuple[tuple[int, ...], ...]
    skipped: tuple[int, ...]
    text: Tensor | None = None
    lanes: tuple[str, ...] = LANES
    renamed: bool = False


class CannotRun(Exception):
    """The model cannot be run like this, without any capture; the message is the model's own error."""


def _ids(n: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(_FIRST_ID, _LAST_ID, (n,), generator=generator).tolist()
    return found


def _batch() -> Tensor:
    return torch.tensor([_ids(_TIME, 1), _ids(_TIME, 2)])


def _padded() -> tuple[list[list[int]], Tensor, Tensor]:
    """Return two texts of different lengths, and their left-padded ids and attention mask."""
    texts = [_ids(n, 3 + n) for n in _LENGTHS]
    width = max(_LENGTHS)
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return texts, ids, mask


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return whether a pass of the model runs an encoder over one text and a decoder over another."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def plain(model: nn.Module) -> CaseRun:
    """Run one pass over two texts of equal length."""
    ids = _batch()
    run_plain(model)
    return CaseRun(_rows(ids), (0, 0), renamed=is_encoder_decoder(model))


def run_plain(model: nn.Module, **more: bool) -> object:
    """Run the plain pass and return the model's output."""
    ids = _batch()
    with torch.no_grad():
        if is_encoder_decoder(model):
            source = torch.tensor([_ids(_TIME - 3, 7), _ids(_TIME - 3, 8)])
            return model(input_ids=source, decoder_input_ids=ids, **more)
        return model(input_ids=ids, **more)


def left_padded(model: nn.Module) -> CaseRun:
    """Run one pass over two texts of different lengths, padded on the left."""
    texts, ids, mask = _padded()
    if is_encoder_decoder(model):
        raise CannotRun("the decoder of an encoder-decoder begins all texts in one column")
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    return CaseRun(tuple(map(tuple, texts)), tuple(max(_LENGTHS) - n for n in _LENGTHS))


def generate(model: nn.Module) -> CaseRun:
    """Generate greedily from two left-padded texts."""
    texts, ids, mask = _padded()
    run = getattr(model, "generate", None)
    if not callable(run):
        raise CannotRun("the model class has no generate()")
    torch.manual_seed(0)  # text diffusion begins with noise
    out = run(
        input_ids=ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, eos_token_id=None, pad_token_id=PAD,
        **({"decoder_start_token_id": BOS} if is_encoder_decoder(model) else {}),
    )  # fmt: skip
    text = getattr(out, "sequences", out)
    if not isinstance(text, Tensor) or text.ndim != 2:
        raise CannotRun(f"generate() gave {type(out).__name__}, not token ids")
    if is_encoder_decoder(model):
        return CaseRun(tuple(tuple(row[:-1]) for row in text.tolist()), (0, 0), text, renamed=True)
    skipped = tuple(max(_LENGTHS) - n for n in _LENGTHS)
    rows = tuple(tuple(row[skip:-1]) for row, skip in zip(text.tolist(), skipped, strict=True))
    if any(list(row[: len(given)]) != given for row, given in zip(rows, texts, strict=True)):
        raise CannotRun("generate() does not give the prompt back")
    return CaseRun(rows, skipped, text)


def chunked(model: nn.Module) -> CaseRun:
    """Run two texts in three passes over a key-value cache."""
    ids = _batch()
    if is_encoder_decoder(model):
        raise CannotRun("the cache of an encoder-decoder holds its encoder's output too")
    cache: object = None
    begin = 0
    for n in _CHUNKS:
        more = {} if cache is None else {"past_key_values": cache}
        with torch.no_grad():
            out = model(input_ids=ids[:, begin : begin + n], use_cache=True, **more)
        cache = getattr(out, "past_key_values", None)
        if not hasattr(cache, "get_seq_length"):
            raise CannotRun("the model gives no key-value cache")
        begin += n
    return CaseRun(_rows(ids), (0, 0))


def reads_images(model: nn.Module) -> bool:
    """Return whether the model has a vision part and a method that gives its features."""
    config = getattr(model, "config", None)
    return getattr(config, "vision_config", None) is not None and callable(getattr(model, "get_image_features", None))


def image(model: nn.Module) -> CaseRun:
    """Generate greedily from two texts of equal length, each with an image at its placeholders."""
    run = getattr(model, "generate", None)
    if not callable(run):
        raise CannotRun("the model class has no generate()")
    config = getattr(model, "config", None)
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if not isinstance(token, int) or not _LAST_ID <= token < VOCABULARY:
        raise CannotRun("the configuration names no placeholder of an image")
    try:
        pixels = _pixels(model)
        n = _features(model, pixels)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CannotRun(
            f"it takes images in another form than pixels or patches of a grid: {type(error).__name__}: {error}"[:200]
        ) from error
    ids = torch.tensor([[*_ids(3, 11 + i), *[token] * n, *_ids(4, 21 + i)] for i, _ in enumerate(LANES)])
    more = {"mm_token_type_ids": (ids == token).int()} if "mm_token_type_ids" in _parameters(model) else {}
    out = run(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=_NEW, do_sample=False, eos_token_id=None,
        pad_token_id=PAD, **pixels, **more,
    )  # fmt: skip
    text = getattr(out, "sequences", out)
    if not isinstance(text, Tensor) or text.ndim != 2 or not torch.equal(text[:, : ids.shape[1]], ids):
        raise CannotRun("generate() does not give the prompt back")
    return CaseRun(_rows(text[:, :-1]), (0, 0), text)


def _parameters(model: nn.Module) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def _pixels(model: nn.Module) -> dict[str, Tensor]:
    """Return random inputs of the vision part for one image a lane, of the kinds of input that the model takes."""
    vision = getattr(model, "config").vision_config  # noqa: B009
    taken = _parameters(model)
    channels = next((n for name in ("num_channels", "in_channels", "in_chans") if (n := getattr(vision, name, 0))), 3)
    generator = torch.Generator().manual_seed(5)
    if "image_grid_thw" in taken:
        merge, patch, frames = vision.spatial_merge_size, vision.patch_size, getattr(vision, "temporal_patch_size", 1)
        grid = torch.tensor([[1, 2 * merge, 2 * merge]] * len(LANES))
        numbers = torch.randn(len(LANES) * 4 * merge**2, channels * frames * patch**2, generator=generator)
        return {"pixel_values": numbers, "image_grid_thw": grid}
    side, patch = (
        size if isinstance(size, int) else size[0] for size in (vision.image_size, getattr(vision, "patch_size", 1))
    )
    if (side // patch) ** 2 > _MOST_PATCHES:
        raise CannotRun(
            f"an image of {side} x {side} in patches of {patch}: over {_MOST_PATCHES} patches are too slow here"
        )
    found = {"pixel_values": torch.randn(len(LANES), channels, side, side, generator=generator)}
    if "image_sizes" in taken and vision.model_type == "pixtral":
        found["image_sizes"] = torch.tensor([[side, side]] * len(LANES))
    return found


def _features(model: nn.Module, pixels: dict[str, Tensor]) -> int:
    """Return the number of vectors that the vision part gives for one image."""
    get = getattr(model, "get_image_features")  # noqa: B009
    taken = inspect.signature(get).parameters
    with torch.no_grad():
        out = get(**{name: value for name, value in pixels.items() if name in taken})
    found = getattr(out, "pooler_output", out)
    parts = found if isinstance(found, tuple | list) else [found]
    n: int = sum(part.numel() // part.shape[-1] for part in parts)
    return n // len(LANES)


def _rows(ids: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.tolist())


RUN: dict[CaseName, Callable[[nn.Module], CaseRun]] = {
    "plain": plain,
    "left_padded": left_padded,
    "generate": generate,
    "chunked": chunked,
    "image": image,
}


def lanes_of(passes: Sequence[dict[str, Tensor]], ran: CaseRun, site: str) -> list[Tensor] | None:
    """Return the newest value of each position at a site, [positions, d] by lane; None if the passes do not say.

    Each pass continues the texts where the one before ended, or computes them again from their first column.
    """
    columns: Tensor | None = None
    for one in passes:
        value = one.get(site)
        if value is None:
            return None
        known = 0 if columns is None else columns.shape[1]
        if columns is None or value.shape[1] > known:
            columns = value
        elif value.shape[0] == columns.shape[0] and value.shape[1] <= known:
            columns = torch.cat([columns, value], dim=1)
    if columns is None:
        return None
    lanes = [columns[i, skip:] for i, skip in enumerate(ran.skipped)]
    fits = all(len(lane) == len(tokens) for lane, tokens in zip(lanes, ran.tokens, strict=True))
    return lanes if fits else None
