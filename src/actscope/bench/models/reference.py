"""The values that rows are held against: found with plain hooks and by the values themselves, without `actscope.taps`.

The residual stream is a chain: of all lists of modules of the model, the one whose members run one after the other, each on what
the one before gave. Names, the configuration and the product's own tables take no part in this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

_NORM = re.compile(r"norm|^ln|_ln", re.IGNORECASE)


@dataclass(slots=True)
class ModuleCall:
    """One call of a module: its path, when it began and ended, and copies of what it took and gave."""

    path: str
    began: int
    ended: int = -1
    taken: tuple[Tensor, ...] = ()
    given: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream of a model: paths of its blocks, first to last, and of the norm behind the last one.

    Attributes:
        blocks: Paths of the blocks.
        norm: Path of the final norm, or "" if the model has none.
        inner: Whether the norm is inside the last block.
        time_first: Whether the blocks take [time, batch, d].
        joined: Whether each block takes exactly what the one before gave.
        idle: Numbers of the blocks that did not run, such as cross-attention blocks without an image.
    """

    blocks: tuple[str, ...]
    norm: str
    inner: bool
    time_first: bool
    joined: bool
    idle: frozenset[int]

    @property
    def last(self) -> int:
        """Return the number of the last block that ran."""
        return max(set(range(len(self.blocks))) - self.idle)


def tensor_in(value: object) -> Tensor | None:
    """Return a floating tensor, or the first of a tuple or list, or the last hidden state of a model output."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


@contextmanager
def calls_of(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """Record every call of every module in the body, with copies of its tensors."""
    calls: list[ModuleCall] = []
    running: list[ModuleCall] = []
    clock = [0]

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if (tensor_in(value) is not None)]
            taken = tuple(found.clone() for value in tensors if (found := tensor_in(value)) is not None)
            clock[0] += 1
            running.append(ModuleCall(path, clock[0], taken=taken))

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            call = running.pop()
            while call.path != path:  # a call that raised and was caught
                call = running.pop()
            clock[0] += 1
            found = tensor_in(output)
            call.ended, call.given = clock[0], None if found is None else found.clone()
            calls.append(call)

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after(path)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_stream(
    model: nn.Module, calls: Sequence[ModuleCall], shape: tuple[int, int], within: str = ""
) -> Stream | None:
    """Find the residual stream in the calls of one pass over tokens of this shape; None if no list of modules is a chain.

    Args:
        model: The model.
        calls: Its calls.
        shape: (batch, time) of the tokens, two different numbers.
        within: Path of the part of the model that holds the blocks, such as a decoder; "" is all of it.
    """
    by_path: dict[str, list[ModuleCall]] = {}
    for call in calls:
        by_path.setdefault(call.path, []).append(call)
    found: list[tuple[bool, int, int, tuple[str, ...], bool]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not _below(name, within):
            continue
        paths = tuple(f"{name}.{child}" for child, _ in module.named_children())
        chain = _chain(paths, by_path, shape)
        if chain is not None:
            found.append((chain[0], len(paths), -name.count("."), paths, chain[1]))
    if not found:
        return None
    joined, _, _, paths, time_first = max(found)
    ran = tuple(path for path in paths if path in by_path)
    norm, inner = _final_norm(model, calls, by_path, ran)
    return Stream(
        paths, norm, inner, time_first, joined, frozenset(i for i, path in enumerate(paths) if path not in by_path)
    )


def _below(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def _chain(
    paths: tuple[str, ...], by_path: dict[str, list[ModuleCall]], shape: tuple[int, int]
) -> tuple[bool, bool] | None:
    """Return (joined, time first) if most of these modules ran, once and in order, on rows of this shape; else None."""
    calls = [by_path[path] for path in paths if path in by_path]
    if 2 * len(calls) <= len(paths) or any(len(one) != 1 for one in calls):
        return None
    line = [one[0] for one in calls]
    if any(call.given is None or not call.taken for call in line):
        return None
    pairs = [(call.taken[0], call.given) for call in line if call.given is not None]
    leads = {tuple(given.shape[:2]) for _, given in pairs}
    if leads not in ({shape}, {shape[::-1]}) or any(given.ndim < 3 for _, given in pairs):
        return None
    if any(after.began < before.ended for before, after in pairwise(line)):
        return None
    joined = all(_same(given, taken) for (_, given), (taken, _) in pairwise(pairs))
    return joined, leads == {shape[::-1]} != {shape}


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)


def _final_norm(
    model: nn.Module, calls: Sequence[ModuleCall], by_path: dict[str, list[ModuleCall]], blocks: tuple[str, ...]
) -> tuple[str, bool]:
    """Return the path of the norm that takes the last block's output, or "", and whether the last block holds it."""
    last = by_path[blocks[-1]][0]
    assert last.given is not None
    head = _input_of_head(model, by_path)
    outside: list[tuple[bool, ModuleCall]] = []
    for call in calls:
        named = _NORM.search(call.path.rpartition(".")[2]) or _NORM.search(
            type(model.get_submodule(call.path)).__name__
        )
        if call.began > last.ended and named and call.taken and _same(_flat(call.taken[0]), _flat(last.given)):
            outside.append((_same(_flat(call.given), _flat(head)), call))
    if outside:
        call = max(outside, key=lambda one: (one[0], -one[1].began))[1]
        return call.path, False
    inside = [
        call for call in calls
        if call.path.startswith(f"{blocks[-1]}.") and _NORM.search(call.path.rpartition(".")[2]) and _same(call.given, last.given)
    ]  # fmt: skip
    return (inside[-1].path, True) if inside else ("", False)


def _flat(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(-1, value.shape[-1])


def _input_of_head(model: nn.Module, by_path: dict[str, list[ModuleCall]]) -> Tensor | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    path = next((path for path, module in model.named_modules() if module is head), None)
    calls = by_path.get(path, []) if path is not None else []
    return calls[-1].taken[0] if calls and calls[-1].taken else None


@dataclass(slots=True)
class Watched:
    """What plain hooks saw at the points of a stream: for each pass, by site, [batch, columns, d]."""

    passes: list[dict[str, Tensor]] = field(default_factory=list)


@contextmanager
def watching(model: nn.Module, stream: Stream) -> Iterator[Watched]:
    """Copy the values at all points of the stream while the body runs the model. A pass begins with the first block."""
    watched = Watched()

    def keep(site: str, value: Tensor | None) -> None:
        if value is not None and watched.passes:
            turned = value.transpose(0, 1) if stream.time_first else value
            watched.passes[-1][site] = turned.clone()

    def enter(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            found = [t for value in (*args, *kwargs.values()) if (t := tensor_in(value)) is not None]
            if layer == min(set(range(len(stream.blocks))) - stream.idle):
                watched.passes.append({})
                keep("embed", found[0])
            keep(f"layers.{layer}.resid_pre", found[0])

        return hook

    def leave(site: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            keep(site, tensor_in(output))

        return hook

    handles = []
    for layer, path in enumerate(stream.blocks):
        block = model.get_submodule(path)
        handles.append(block.register_forward_pre_hook(enter(layer), with_kwargs=True))
        handles.append(block.register_forward_hook(leave(f"layers.{layer}.resid_post")))
    if stream.norm:
        handles.append(model.get_submodule(stream.norm).register_forward_hook(_norm_hook(stream, watched, keep)))
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def _norm_hook(stream: Stream, watched: Watched, keep: Callable[[str, Tensor | None], None]) -> Callable[..., None]:
    """Keep the run of the norm, in each pass, that takes the last block's output."""
    last = f"layers.{stream.last}.resid_post"

    def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if not watched.passes:
            return
        end = watched.passes[-1].get(last)
        taken, given = tensor_in(args), tensor_in(output)
        if stream.inner or (end is not None and "final_norm" not in watched.passes[-1] and _fits(taken, end, stream)):
            keep("final_norm", given)

    return hook


def _fits(taken: Tensor | None, end: Tensor, stream: Stream) -> bool:
    """Return whether the norm takes the stream's end, possibly only its last columns (or not as a positional argument)."""
    if taken is None:
        return True
    turned = taken.transpose(0, 1) if stream.time_first and taken.ndim == 3 else taken
    return turned.shape != end.shape or torch.equal(turned, end)
