"""The truth check on blocks that no model of vLLM has, or that one may have tomorrow; without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actscope.engines.vllm.layer_outputs import attach
from actscope.engines.vllm.truth import check, trial
from actscope.engines.vllm.truth.check import Verdicts, examine
from actscope.engines.vllm.truth.reading import Key, Reading, candidates
from actscope.sites import Site

D, LAYERS = 32, 3
POINTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
SITES = [Site(i, point) for i in range(LAYERS) for point in POINTS]

Rows = dict[Site, Tensor]


class AddNorm(nn.Module):
    """A norm as in vLLM: given (x, residual) it norms their sum, and returns that too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(D) + 0.5)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        total = x if residual is None else x + residual
        out = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        return out if residual is None else (out, total)


class PassNorm(AddNorm):
    """A norm that takes a residual, and hands it on without adding it (as Cohere's)."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return super().forward(x), residual


class DeferringNorm(AddNorm):
    """A norm in which the all-reduce of a partial sum takes place: two ranks here."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return super().forward(x) if residual is None else super().forward(2 * x, residual)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.linear(x))
        return out


class Block(nn.Module):
    norm: type[nn.Module] = AddNorm

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Mlp(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = self.norm(), self.norm()


class Pending(Block):
    """(what is to be added, the stream before): nearly all of vLLM's."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states, residual = self.post_attention_layernorm(self.self_attn(hidden_states), residual)
        return self.mlp(hidden_states), residual


class Deferring(Pending):
    norm = DeferringNorm


class Leftover(Block):
    """(the stream, the stream in mid-block), of which nobody adds the second (StableLM)."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        middle = hidden_states + self.self_attn(self.input_layernorm(hidden_states))
        return middle + self.mlp(self.post_attention_layernorm(middle)), middle


class Parallel(Block):
    """(the stream, the stream before), from one norm that does not add (Cohere)."""

    norm = PassNorm

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        residual = hidden_states
        hidden_states, residual = self.input_layernorm(hidden_states, residual)
        return residual + self.self_attn(hidden_states) + self.mlp(hidden_states), residual


class Swapped(Pending):
    """The same pair, the other way round."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        return super().forward(positions, *((hidden_states, None) if residual is None else (residual, hidden_states)))[
            ::-1
        ]


class PostNorm(Block):
    """The stream alone; norms only behind attention and MLP (OLMo 2)."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Tensor:
        middle: Tensor = hidden_states + self.input_layernorm(self.self_attn(hidden_states))
        added: Tensor = self.post_attention_layernorm(self.mlp(middle))
        return middle + added


class Scaled(Block):
    """The stream alone; what is added has a factor (Granite)."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Tensor:
        middle: Tensor = hidden_states + 0.22 * self.self_attn(self.input_layernorm(hidden_states))
        added: Tensor = self.mlp(self.post_attention_layernorm(middle))
        return middle + 0.22 * added


class Shrinking(Pending):
    """What it adds is smaller in float16 (DeepSeek)."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        hidden_states, residual = super().forward(positions, hidden_states, residual)
        if hidden_states.dtype == torch.float16:
            hidden_states, residual = hidden_states / 16, residual / 16
        return hidden_states, residual


class Wide(Block):
    """Two streams side by side (Gemma 3n has four)."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Tensor:
        both = hidden_states if hidden_states.dim() == 3 else torch.stack((hidden_states, hidden_states))
        return both + torch.stack((self.self_attn(self.input_layernorm(both[0])), self.mlp(both[1])))


class Batched(Scaled):
    """As on vLLM's Transformers backend: [1, n, d]."""


class Model(nn.Module):
    """A decoder as vLLM has them. `repeats`: how often its layers run."""

    def __init__(self, block: type[Block], repeats: int = 1) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=D)
        self.embed = nn.Embedding(50, D)
        self.layers = nn.ModuleList(block() for _ in range(LAYERS))
        self.norm = block.norm()
        self.repeats = repeats
        self.streams: list[Tensor] = []

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Any = self.embed(ids)
        residual = None
        if isinstance(self.layers[0], Batched):
            hidden = hidden[None]
        self.streams = [hidden]
        for layer in [*self.layers] * self.repeats:
            out = layer(ids, hidden, residual)
            hidden, residual = out if isinstance(out, tuple) else (out, None)
        if not isinstance(self.norm, AddNorm):
            return self.norm(hidden)  # type: ignore[no-any-return]
        last = (hidden, residual) if isinstance(self.layers[0], Pending | Parallel) else (hidden,)
        normed: Any = self.norm(*(last[::-1] if isinstance(self.layers[0], Swapped) else last))
        first: Tensor = normed[0] if isinstance(normed, tuple) else normed
        return first


class FirstOf(nn.Module):
    """In the place of a final norm: an end without one."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Runner:
    """What the check needs of vLLM's runner."""

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.device = model.to(dtype), torch.device("cpu")
        self.model_config: Any = SimpleNamespace(dtype=dtype)
        self.vllm_config: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=64))

    def get_model(self) -> nn.Module:
        return self.model

    @torch.inference_mode()
    def _dummy_run(self, num_tokens: int, **how: object) -> None:
        self.model(torch.zeros(num_tokens, dtype=torch.long))


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_ranks", lambda: SimpleNamespace(world_size=1))
    torch.manual_seed(0)


def examined(block: type[Block], dtype: torch.dtype = torch.float32, repeats: int = 1) -> tuple[Model, Verdicts]:
    model = Model(block, repeats)
    return model, examine(Runner(model, dtype), model, SITES)


def rows(model: Model, verdicts: Verdicts) -> dict[str, Tensor]:
    """What the taps read in a pass over other tokens."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, Tensor | None], None]:
        def read(hidden: Tensor, residual: Tensor | None) -> None:
            found[name] = hidden.clone() if residual is None else hidden + residual

        return read

    hooks = [attach(tap, keep(site.name)) for site, tap in verdicts.taps.items()]
    with torch.no_grad():
        model(torch.arange(7))
    for hook in hooks:
        hook.remove()
    return found


def stream(model: Model) -> list[Tensor]:
    """The stream at each of the four borders of blocks, computed from the embeddings by what a block of each kind means."""
    with torch.no_grad():
        x = model.embed(torch.arange(7))
        found = [x]
        for block in model.layers:
            assert isinstance(block, Block)
            a, b, n1, n2 = block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm
            if isinstance(block, Parallel):
                normed = n1(x)[0]
                x = x + a(normed) + b(normed)
            elif isinstance(block, PostNorm):
                x = x + n1(a(x))
                x = x + n2(b(x))
            else:
                factor = 0.22 if isinstance(block, Scaled) else 1.0
                x = x + factor * a(n1(x))
                x = x + factor * b(n2(x))
            found.append(x)
    return found


@pytest.mark.parametrize("block", [Pending, Leftover, Parallel, Swapped, PostNorm, Scaled, Batched])
def test_the_stream_is_what_the_next_norm_reads_or_the_block_adds_to(block: type[Block]) -> None:
    """Pairs to be summed, pairs of which one is the stream, in either order, and single tensors."""
    model, verdicts = examined(block)
    found, right = rows(model, verdicts), stream(model)
    for i in range(LAYERS):
        torch.testing.assert_close(found[f"layers.{i}.resid_pre"], right[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"layers.{i}.resid_post"], right[i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [Pending, Leftover, Parallel, PostNorm, Scaled])
def test_the_parts_add_up_to_the_change_of_the_stream(block: type[Block]) -> None:
    """Behind post-norms and factors too."""
    model, verdicts = examined(block)
    assert not verdicts.refused
    found = rows(model, verdicts)
    for i in range(LAYERS):
        at = {point: found[f"layers.{i}.{point}"] for point in POINTS}
        total = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
        torch.testing.assert_close(total, at["resid_post"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [Pending, Leftover, Parallel])
def test_half_precisions_are_told_apart_too(block: type[Block], dtype: torch.dtype) -> None:
    _, verdicts = examined(block, dtype)
    reference, _ = examined(block)
    assert {s: t.reading for s, t in verdicts.taps.items()} == {
        s: t.reading for s, t in examine(Runner(reference), reference, SITES).taps.items()
    }


@pytest.mark.parametrize("block", [Pending, Leftover, Parallel, PostNorm])
def test_the_last_block_of_a_pipeline_stage_is_read_by_what_it_adds(block: type[Block]) -> None:
    """No norm comes behind it in this process. Some pairs hold the stream in mid-block too, which is a smaller sum."""
    model = Model(block)
    complete = examine(Runner(model), model, SITES)
    model.norm = nn.Sequential(FirstOf())
    verdicts = examine(Runner(model), model, SITES)
    assert verdicts == complete and len(verdicts.taps) == len(SITES)


def test_a_partial_sum_that_a_norm_completes_is_refused() -> None:
    """Its all-reduce is deferred into the next norm: the sum of the pair is not the stream, and nothing is delivered."""
    _, verdicts = examined(Deferring)
    assert not any(site.point == "resid_post" for site in verdicts.taps)
    why = verdicts.refused["layers.0.resid_post"]
    assert (
        "Deferring returns" in why and "that the next norm of Model reads" in why and "--model-impl transformers" in why
    )


@pytest.mark.parametrize("block", [Leftover, Parallel])
def test_a_pair_that_only_its_sum_is_tried_for_is_refused_where_the_first_is_the_stream(
    block: type[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every pair were (what is to be added, the stream): such rows would be off by half of their length."""

    def only_sums(tensors: Mapping[Key, Tensor]) -> Iterator[tuple[Reading, Tensor]]:
        return ((reading, row) for reading, row in candidates(tensors) if len(reading.parts) == min(2, len(tensors)))

    for module in (check, trial):
        monkeypatch.setattr(module, "candidates", only_sums)
    _, verdicts = examined(block)
    assert {site.name for site in verdicts.taps} <= {"layers.0.resid_pre"}  # there is one tensor
    assert "is the stream that the next norm of Model reads" in verdicts.refused["layers.0.resid_post"]


def test_a_stream_that_is_scaled_in_float16_is_refused_there() -> None:
    _, verdicts = examined(Shrinking, torch.float16)
    assert "scales its residual stream in float16" in verdicts.refused["layers.0.resid_post"]
    assert not examined(Shrinking, torch.bfloat16)[1].refused


def test_several_streams_are_refused() -> None:
    _, verdicts = examined(Wide)
    assert "Wide returns several vectors for each token" in verdicts.refused["layers.1.resid_post"]
    assert not any(site.point == "resid_post" for site in verdicts.taps)


def test_layers_that_run_twice_are_refused() -> None:
    """Which of their two rows would be meant?"""
    _, verdicts = examined(Leftover, repeats=2)
    assert not verdicts.taps and "runs 2 times in a pass" in verdicts.refused["layers.0.resid_post"]


def test_ranks_with_different_rows_and_the_refusal_of_one_rank_are_refusals_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = SimpleNamespace(world_size=2, cpu_group=None)
    monkeypatch.setattr(check, "_ranks", lambda: group)

    def gather(into: list[Tensor], own: Tensor, group: object) -> None:
        into[0].copy_(own)
        into[1].copy_(own)
        into[1][SITES.index(Site(0, "attn_out")), 1:] += 1.0
        into[1][SITES.index(Site(2, "mlp_out")), 0] = 0.0

    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    _, verdicts = examined(Pending)
    assert "ranks differ" in verdicts.refused["layers.0.attn_out"]
    assert "another tensor-parallel rank refuses it" in verdicts.refused["layers.2.mlp_out"]
    assert len(verdicts.taps) == len(SITES) - 2
