"""What a block adds to the stream is found by its values, whatever its modules are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.taps.models import random_model
from torch import Tensor, nn

from actscope.taps.measured import BlockSum, measure
from actscope.taps.text_model import blocks

_IDS = torch.arange(3, 15)[None]

#: For each architecture its config, and (module, factor) of what is added by attention or mixer and by the MLP. Taken from the
#: forward method of its decoder layer.
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, float, str]]]] = {
    "llama": ({}, [("self_attn", 1, "attn_out"), ("mlp", 1, "mlp_out")]),
    "gemma2": (
        {},
        [("post_attention_layernorm", 1, "attn_out"), ("post_feedforward_layernorm", 1, "mlp_out")],
    ),
    "olmo2": ({}, [("post_attention_layernorm", 1, "attn_out"), ("post_feedforward_layernorm", 1, "mlp_out")]),
    "glm4": ({}, [("post_self_attn_layernorm", 1, "attn_out"), ("post_mlp_layernorm", 1, "mlp_out")]),
    "granite": ({"residual_multiplier": 0.22}, [("self_attn", 0.22, "attn_out"), ("mlp", 0.22, "mlp_out")]),
    "cohere": ({}, [("self_attn", 1, "attn_out"), ("mlp", 1, "mlp_out")]),
    "falcon": ({}, [("self_attention", 1, "attn_out"), ("mlp", 1, "mlp_out")]),
    "opt": ({}, [("self_attn", 1, "attn_out"), ("fc2", 1, "mlp_out")]),
    "bloom": (
        {},
        [("self_attention.dense", 1, "attn_out"), ("mlp.dense_4h_to_h", 1, "mlp_out")],
    ),
    "gpt2": ({}, [("attn", 1, "attn_out"), ("mlp", 1, "mlp_out")]),
    "mamba": ({}, [("mixer", 1, "mixer_out")]),
}


def model_of(architecture: str) -> nn.Module:
    return random_model(architecture, **CASES[architecture][0])


def measured(model: nn.Module) -> list[BlockSum | None]:
    return measure(blocks(model), lambda: model(input_ids=_IDS))


@pytest.mark.parametrize("architecture", CASES)
def test_the_summands_are_those_of_the_models_own_code(architecture: str) -> None:
    found = measured(model_of(architecture))
    assert len(found) == 2
    for one in found:
        assert one is not None and one.stream_scale == 1
        assert [(s.path, s.scale, s.kind) for s in one.summands] == CASES[architecture][1]


@pytest.mark.parametrize("architecture", CASES)
def test_the_summands_make_up_the_change_of_the_stream(architecture: str) -> None:
    """Computed apart, by plain hooks: resid_pre plus the summands is resid_post."""
    model = model_of(architecture)
    block = blocks(model)[1]
    seen: dict[str, Tensor] = {}
    modules = {"": block, **{path: block.get_submodule(path) for path, _, _ in CASES[architecture][1]}}
    handles = [
        module.register_forward_hook(
            lambda m, args, output, path=path: seen.__setitem__(
                path,
                (output if isinstance(output, Tensor) else output[0]).clone(),  # Falcon adds to it in place
            )
        )
        for path, module in modules.items()
    ]
    handles.append(
        block.register_forward_pre_hook(
            lambda m, args, kwargs: seen.__setitem__("before", args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    )
    with torch.no_grad():
        model(input_ids=_IDS)
    total = seen["before"] + sum(scale * seen[path] for path, scale, _ in CASES[architecture][1])
    torch.testing.assert_close(total, seen[""], rtol=1e-4, atol=1e-5)
    assert len(handles) == len(seen)


class _Block(nn.Module):
    """A block whose change no outputs of its modules make up: the stream itself passes a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(hidden + self.attn(hidden)) * 1.5 + hidden.sin()
        return out


class _Scaled(nn.Module):
    """A block that scales the stream before it adds to it, and calls its dropout twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = 0.5 * hidden + self.drop(self.attn(hidden.sin()))
        out: Tensor = hidden + 2 * self.drop(self.mlp(hidden.cos()))
        return out


def test_a_change_that_is_no_sum_is_not_explained() -> None:
    block = _Block()
    assert measure([block], lambda: block(torch.randn(1, 12, 8))) == [None]


def test_a_scaled_stream_and_factors_are_found() -> None:
    torch.manual_seed(1)
    block = _Scaled().eval()
    (one,) = measure([block], lambda: block(torch.randn(1, 12, 8)))
    assert one is not None and one.stream_scale == 0.5 and one.error < 1e-5
    assert [(s.path, s.scale, s.kind) for s in one.summands] == [("attn", 1, "attn_out"), ("mlp", 2, "mlp_out")]


def test_a_block_that_does_not_run_is_not_explained_and_no_hook_is_left() -> None:
    ran, idle = _Scaled().eval(), _Scaled().eval()
    found = measure([ran, idle], lambda: ran(torch.randn(1, 12, 8)))
    assert found[0] is not None and found[1] is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for block in (ran, idle) for m in block.modules())
