"""The truth check refuses points that are not what their names say, on models that nobody has heard of too."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support.taps.models import random_model
from torch import Tensor, nn

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps import anatomy
from actscope.taps.anatomy import learn, locate, refusals, resolve, truth_check
from actscope.taps.text_model import blocks

_IDS = torch.arange(3, 15)[None]


class _Layer(nn.Module):
    """A block that leaves the addition of its MLP to the next norm, and hands on (hidden, residual)."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm, self.norm = nn.LayerNorm(16), nn.LayerNorm(16)
        self.self_attn, self.mlp = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        residual = residual + self.self_attn(self.input_norm(residual))
        return self.mlp(self.norm(residual)), residual


class _Pending(nn.Module):
    """A decoder whose blocks return two tensors of which the first alone is not the stream."""

    def __init__(self, stream: bool = False) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_hidden_layers": 3, "hidden_size": 16})()
        self.embed, self.layers = nn.Embedding(32, 16), nn.ModuleList(_Layer() for _ in range(3))
        self.norm = nn.LayerNorm(16)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, residual = self.embed(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        out: Tensor = self.norm(hidden + residual)
        return out


class _Scaled(nn.Module):
    """A decoder that scales the stream between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_hidden_layers": 2, "hidden_size": 16})()
        self.embed, self.norm = nn.Embedding(32, 16), nn.LayerNorm(16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.LayerNorm(16)) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = 0.5 * layer(hidden)
        out: Tensor = self.norm(hidden)
        return out


def test_a_first_value_that_is_not_the_stream_is_refused_by_the_models_own_final_norm() -> None:
    torch.manual_seed(0)
    model = _Pending().eval()
    learn(model, lambda: model(input_ids=_IDS))
    for point in ("resid_pre", "resid_post"):
        with pytest.raises(SiteError, match=r"final norm takes other values than its last block returns \(by \d"):
            locate(model, Site(1, point))


def test_a_stream_that_changes_between_blocks_is_refused_on_both_sides() -> None:
    torch.manual_seed(0)
    model = _Scaled().eval()
    learn(model, lambda: model(input_ids=_IDS))
    with pytest.raises(SiteError, match="block 0 returns other values than block 1 takes"):
        locate(model, Site(0, "resid_post"))
    with pytest.raises(SiteError, match="block 1 takes other values than block 0 returns"):
        locate(model, Site(1, "resid_pre"))


def test_an_addition_between_blocks_whose_sums_hold_is_no_fault() -> None:
    """Qwen3-VL adds visual features to the stream between its blocks."""
    model: Any = random_model("llama")
    blocks(model)[1].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 1, *args[1:]), kwargs), with_kwargs=True
    )
    learn(model, lambda: model(input_ids=_IDS))
    assert locate(model, Site(0, "resid_post")).module is blocks(model)[0]


def test_blocks_and_norms_that_do_not_run_exactly_once_are_refused() -> None:
    model: Any = random_model("llama")
    layers = model.model.layers
    layers[1].forward = lambda hidden, *args, **kwargs: layers[0](hidden, *args, **kwargs)
    norm = model.model.norm
    learn(model, lambda: (model(input_ids=_IDS), norm(torch.zeros(1, 12, 32))))
    for site, why in (
        (Site(0, "resid_post"), "block 0 ran 2 times"),
        (Site(None, "final_norm"), "the final norm ran 2 times"),
    ):
        with pytest.raises(SiteError, match=f"{why} in one pass"):
            locate(model, site)


def refused(model: Any, sites: str, points: str = "resid_post") -> dict[str, str]:
    """What a check of one pass refuses of these sites, each located by the names of modules."""
    places = resolve(model, sites, points)
    check = truth_check(model)
    check.attach()
    model(input_ids=_IDS)
    check.detach()
    return {site.name: why for site, why in refusals(model, places, check.truth()).items()}


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "olmo2", "glm4"])
def test_the_output_before_a_norm_behind_the_module_is_caught(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(random_model(architecture), "0.attn_out,1.mlp_out") == {}
    monkeypatch.setattr(anatomy, "_NORMS_BEHIND", {"attn_out": (), "mlp_out": ()})
    found = refused(random_model(architecture), "0.attn_out,1.mlp_out")
    assert list(found) == ["layers.0.attn_out", "layers.1.mlp_out"]
    assert all("what the block adds is 1 x post_" in why for why in found.values())


def test_a_factor_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("granite", residual_multiplier=0.22)
    assert refused(model, "0.attn_out,1.mlp_out") == {}
    monkeypatch.setattr(anatomy, "_factor", lambda block: 1.0)
    found = refused(model, "0.attn_out,1.mlp_out")
    assert found["layers.0.attn_out"].startswith("what the block adds is 0.22 x self_attn")
    assert found["layers.1.mlp_out"].startswith("what the block adds is 0.22 x mlp")


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "olmo2", "glm4", "granite", "falcon", "gpt2", "bloom", "opt"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_points_pass_in_every_dtype_with_massive_activations(architecture: str, dtype: torch.dtype) -> None:
    model: Any = random_model(architecture).to(dtype)
    with torch.no_grad():  # one column of the stream is a thousand times the others
        model.get_input_embeddings().weight[:, 3] *= 1000
    assert refused(model, "0.attn_out,1.mlp_out,all,final_norm") == {}


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2", "glm4"])
def test_wrong_points_fail_in_half_precision_with_massive_activations(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anatomy, "_NORMS_BEHIND", {"attn_out": (), "mlp_out": ()})
    model: Any = random_model(architecture).to(torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 3] *= 1000
    assert list(refused(model, "0.attn_out,1.mlp_out")) == ["layers.0.attn_out", "layers.1.mlp_out"]


def test_dropout_behind_the_modules_is_caught_and_the_reason_names_the_mode() -> None:
    model = random_model("gpt2", resid_pdrop=0.5).train()  # its dropout is inside its modules
    assert refused(model, "0.attn_out,0.mlp_out") == {}
    model = random_model("bloom", hidden_dropout=0.5).train()
    assert "training mode: call its eval() first" in refused(model, "0.mlp_out")["layers.0.mlp_out"]


def test_a_pass_of_another_thread_is_not_seen() -> None:
    model: Any = random_model("llama")
    check = truth_check(model)
    check.attach()
    other = threading.Thread(target=lambda: model(input_ids=_IDS))
    other.start()
    other.join()
    assert not check.ran(0)
    model(input_ids=_IDS)
    check.detach()
    assert check.ran(1) and all(check.truth().sums)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
