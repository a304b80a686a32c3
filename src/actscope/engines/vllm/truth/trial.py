"""A trial pass: the model runs once, eagerly, on a few tokens whose residual stream is replaced by random values.

Before a block runs, each tensor that could carry the stream holds values of its own. What the norms in the block, or the final
norm, make of them shows which of the tensors they read. The values are the same on all tensor-parallel ranks. Attention has no
metadata in such a pass and returns memory as it finds it, so its outputs are replaced too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.engines.vllm.truth.reading import (
    Key,
    Reading,
    Tensors,
    arguments,
    candidates,
    distance,
    output_argument,
    results,
    streams,
)

_TOKENS = 16
_SEED = 0x5EED


class _Sizes(Protocol):
    max_num_batched_tokens: int


class _EngineConfig(Protocol):
    scheduler_config: _Sizes


class _ModelConfig(Protocol):
    dtype: torch.dtype


class TrialRunner(Protocol):
    """What a trial needs of vLLM's model runner, once its model is loaded."""

    device: torch.device
    vllm_config: _EngineConfig
    model_config: _ModelConfig

    def get_model(self) -> nn.Module:
        """Return the model, without the wrapper of its CUDA graphs."""

    def _dummy_run(self, num_tokens: int, **how: object) -> object:
        """Run the model on tokens of no request."""


@dataclass(slots=True)
class BlockTrial:
    """What one block did.

    Attributes:
        runs: How often it ran.
        taken: Stream-like arguments of its first run.
        given: Stream-like tensors that it returned, before they were replaced.
        wide: Whether it takes or returns several vectors for each token.
        read: Distances of the outputs of its first norm that reads the stream from those for each reading of `taken`.
        behind: The same for the readings of `given`, at the first such norm that ran behind the block.
        norms: How many norms ran behind the block, up to the end of the next one.
        uses: Readings of `taken` that were, as they are, the input of a module inside. Only filled if outputs are asked for.
        used: The same for readings of `given` and the modules of the next block.
        outputs: (path, output) of the modules inside, in the order in which they finished, if asked for.
    """

    runs: int = 0
    taken: Tensors = field(default_factory=dict)
    given: Tensors = field(default_factory=dict)
    wide: bool = False
    read: dict[Reading, float] = field(default_factory=dict)
    behind: dict[Reading, float] = field(default_factory=dict)
    norms: int = 0
    uses: set[Reading] = field(default_factory=set)
    used: set[Reading] = field(default_factory=set)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)


@dataclass(slots=True)
class ModuleTrial:
    """What a module took and returned: how often it ran, and its tensors by key, as they were when it ran."""

    runs: int = 0
    taken: Tensors = field(default_factory=dict)
    given: Tensors = field(default_factory=dict)


class Trial:
    """Hooks of one trial pass.

    Attributes:
        blocks: What each block did, by its number in the model.
        modules: What each module of `watched` did.
        n: Number of tokens of the pass.
    """

    def __init__(self, runner: TrialRunner, layers: Mapping[int, nn.Module], d: int) -> None:
        self._runner, self._layers, self.d = runner, layers, d
        self.n = min(_TOKENS, int(runner.vllm_config.scheduler_config.max_num_batched_tokens))
        self.blocks: dict[int, BlockTrial] = {}
        self.modules: dict[nn.Module, ModuleTrial] = {}
        self._fed: Tensors = {}  # what the last block returned, replaced
        self._at: int | None = None  # the block that runs, or ran last
        self._previous: int | None = None  # the block that ran before it, which handed on `_fed`
        self._inside = False
        self._random = torch.Generator(torch.device(runner.device))

    def run(self, watched: Collection[nn.Module] = (), sums: Collection[int] = (), scale: float = 1.0) -> None:
        """Run the model once.

        Args:
            watched: Modules whose tensors are kept in `modules`.
            sums: Blocks whose inner outputs are kept.
            scale: Standard deviation of the random streams.
        """
        self.blocks = {index: BlockTrial() for index in self._layers}
        self.modules = {module: ModuleTrial() for module in watched}
        self._fed, self._at, self._previous, self._inside, self._scale = {}, None, None, False, scale
        self._random.manual_seed(_SEED)
        hooks: list[RemovableHandle] = []
        try:
            self._attach(hooks, sums)
            with _not_compiled(self._runner), self._filled():
                _forward(self._runner, self.n)
        finally:
            for hook in hooks:
                hook.remove()

    # --- hooks, in the order in which they must run ---

    def _attach(self, hooks: list[RemovableHandle], sums: Collection[int]) -> None:
        for index, block in self._layers.items():
            hooks.append(block.register_forward_pre_hook(self._before(index), with_kwargs=True, prepend=True))
        norms = [module for module in self._runner.get_model().modules() if _is_norm(module)]
        hooks += [module.register_forward_hook(self._norm()) for module in norms]
        for index in sums:
            for path, module in self._layers[index].named_modules():
                if path:
                    hooks.append(module.register_forward_pre_hook(self._use(), with_kwargs=True))
                    hooks.append(module.register_forward_hook(self._keep(index, path, module), with_kwargs=True))
        for module in self.modules:
            hooks.append(module.register_forward_pre_hook(self._watch_before(module), with_kwargs=True))
            hooks.append(module.register_forward_hook(self._watch_after(module), with_kwargs=True))
        for index, block in self._layers.items():
            hooks.append(block.register_forward_hook(self._after(index), with_kwargs=True))

    def _before(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            one, given = self.blocks[index], arguments(args, kwargs)
            one.runs += 1
            self._inside = True
            if one.runs > 1:
                return
            found = streams(given, self.n, self.d)
            if self._at is None:
                self._replace(found)
            self._previous, self._at = self._at, index
            one.wide = _is_wide(given, self.n, self.d)
            one.taken = _copies(found)

        return hook

    def _after(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            one = self.blocks[index]
            self._inside = False
            if one.runs > 1:
                return
            found = results(output, {})
            one.wide |= _is_wide(found, self.n, self.d)
            found = streams(found, self.n, self.d)
            one.given = _copies(found)
            self._replace(found)
            self._fed = _copies(found)

        return hook

    def _norm(self) -> Callable[..., None]:
        """Compare a norm's output with what it makes of each reading of the stream."""

        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            made = list(streams(dict(list(results(output, {}).items())[:1]), self.n, self.d).values())
            if self._at is None or not made:
                return
            right = made[0].detach().clone().reshape(self.n, self.d)
            if self._inside:
                _settle(self.blocks[self._at].read, module, self.blocks[self._at].taken, right)
            before = self._previous if self._inside else self._at
            if before is not None:
                self.blocks[before].norms += 1
                _settle(self.blocks[before].behind, module, self._fed, right)

        return hook

    def _use(self) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            if self._at is None or not self._inside:
                return
            one = self.blocks[self._at]
            for tensor in streams(arguments(args, kwargs), self.n, self.d).values():
                one.uses |= _equal(one.taken, tensor)
                if self._previous is not None:
                    self.blocks[self._previous].used |= _equal(self._fed, tensor)

        return hook

    def _keep(self, index: int, path: str, module: nn.Module) -> Callable[..., None]:
        out = output_argument(module)

        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            found = list(results(output, arguments(args, kwargs), out).values())[:1]
            for tensor in streams(dict(enumerate(found)), self.n, self.d).values():
                self.blocks[index].outputs.append((path, tensor.detach().to("cpu", copy=True).reshape(-1)))

        return hook

    @contextmanager
    def _filled(self) -> Iterator[None]:
        """Replace the outputs of attention. By its method, since the Transformers backend calls that, past all hooks."""
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        chosen = [one for one in self._runner.get_model().modules() if isinstance(one, AttentionLayerBase)]
        before = [vars(module).get("forward") for module in chosen]
        for module in chosen:
            vars(module)["forward"] = self._fill(module)
        try:
            yield
        finally:
            for module, was in zip(chosen, before, strict=True):
                del vars(module)["forward"]
                vars(module).update({} if was is None else {"forward": was})

    def _fill(self, module: nn.Module) -> Callable[..., object]:
        out, original = output_argument(module), module.forward

        @wraps(original)
        def forward(*args: object, **kwargs: object) -> object:
            output = original(*args, **kwargs)
            self._replace(results(output, arguments(args, kwargs), out), 1.0)
            return output

        return forward

    def _watch_before(self, module: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            one = self.modules[module]
            one.runs += 1
            if one.runs == 1:
                one.taken = _copies(_floats(arguments(args, kwargs)))

        return hook

    def _watch_after(self, module: nn.Module) -> Callable[..., None]:
        out = output_argument(module)

        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            one = self.modules[module]
            if one.runs == 1:
                one.given = _copies(_floats(results(output, arguments(args, kwargs), out)))

        return hook

    def _replace(self, tensors: Mapping[Key, Tensor], scale: float | None = None) -> None:
        for tensor in _floats(tensors).values():
            with suppress(RuntimeError):  # several elements at one address, as in an expanded tensor
                tensor.normal_(0.0, self._scale if scale is None else scale, generator=self._random)


def _settle(found: dict[Reading, float], module: nn.Module, tensors: Tensors, right: Tensor) -> None:
    """Fill `found` if this norm makes `right` of one of the readings, and no earlier norm did so."""
    if found or not tensors:
        return
    made = {reading: _made(module, rows, right) for reading, rows in candidates(tensors)}
    if min(made.values()) < 0.1:
        found.update(made)


def _made(module: nn.Module, rows: Tensor, right: Tensor) -> float:
    """Return the distance between what a norm makes of `rows` alone and `right`; infinity if it cannot be called so."""
    try:
        output = module.forward(rows.clone())
    except Exception:  # a norm that takes more than one tensor proves nothing
        return float("inf")
    made = list(results(output, {}).values())[:1]
    return distance(made[0].reshape(right.shape), right) if made and made[0].numel() == right.numel() else float("inf")


def _equal(tensors: Tensors, value: Tensor) -> set[Reading]:
    return {Reading((key,)) for key, tensor in tensors.items() if torch.equal(tensor.flatten(), value.flatten())}


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_wide(tensors: Mapping[Key, Tensor], n: int, d: int) -> bool:
    """Return whether one of the tensors holds several vectors of width `d` for each of `n` tokens."""
    return any(
        t.dim() >= 3 and t.is_floating_point() and t.shape[-1] == d and t.numel() > n * d and n in t.shape[:-1]
        for t in tensors.values()
    )


def _floats(tensors: Mapping[Key, Tensor]) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}


def _copies(tensors: Mapping[Key, Tensor]) -> Tensors:
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


# --- the runner ---


def _forward(runner: TrialRunner, n: int) -> None:
    """Run vLLM's own dummy pass, as before its memory profiling: without attention metadata, and without CUDA graphs."""
    from vllm.config import CUDAGraphMode

    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(runner).__mro__]
    if "vllm.v1.worker.gpu.model_runner.GPUModelRunner" in names:
        runner._dummy_run(n, skip_attn=True, skip_eplb=True, is_profile=True)
    else:
        runner._dummy_run(n, cudagraph_runtime_mode=CUDAGraphMode.NONE, skip_eplb=True, is_profile=True)


@contextmanager
def _not_compiled(runner: TrialRunner) -> Iterator[None]:
    """Run the model, and a draft model beside it, as its authors wrote it."""
    modules = [vars(module) for root in _roots(runner) for module in root.modules()]
    flagged = [(module, module["do_not_compile"]) for module in modules if "do_not_compile" in module]
    for module, _ in flagged:
        module["do_not_compile"] = True
    try:
        yield
    finally:
        for module, was in flagged:
            module["do_not_compile"] = was


def _roots(runner: TrialRunner) -> Sequence[nn.Module]:
    held = [getattr(runner, name, None) for name in ("drafter", "speculator")]
    beside = [getattr(one, "model", None) for one in held]
    return [runner.get_model(), *(model for model in beside if isinstance(model, nn.Module))]
