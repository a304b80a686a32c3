"""Presets, builder and overrides; granularity and samples; what a configuration comes to for a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_type_hints

import numpy as np
import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, prompts
from torch import nn

import actscope
from actscope import CaptureConfig, explain
from actscope.capture.auto_config import PURPOSES
from actscope.capture.codec_choice import choose_codec
from actscope.capture.config import _ALIASES
from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.presets import PRESETS
from actscope.capture.settings import CaptureSettings
from actscope.errors import SettingsError
from actscope.sampling import keeps
from actscope.sizes import parse_bytes

_POST = "layers.2.resid_post"


def test_there_are_six_presets_and_each_fits_every_architecture() -> None:
    assert set(PRESETS) == {
        "fast_capture",
        "max",
        "balanced",
        "max_compression",
        "attention_analysis",
        "mlp_analysis",
    }
    for architecture in ("llama", "gpt2", "bert"):
        model = model_of(architecture)
        for name in PRESETS:
            assert explain(CaptureConfig.preset(name), model).sites


def test_the_builder_changes_copies() -> None:
    balanced = CaptureConfig.preset("balanced")
    config = (
        balanced.with_sites("0,2").with_codec("zstd").with_memory("2GB").with_points("attn_out", "mlp_out")
        .with_policy("drop").with_sample(0.5).with_workers(3).with_checkpoints(100)
    )  # fmt: skip
    assert (config.sites, config.codec, config.memory_bytes, config.policy) == ("0,2", "zstd", 2 * 10**9, "drop")
    assert balanced == CaptureConfig.preset("balanced")
    options = config.pipeline()
    assert (options.workers, options.policy, options.memory_bytes, options.checkpoint_tokens) == (
        3,
        "drop",
        2 * 10**9,
        100,
    )


def test_keywords_override_and_unknown_ones_name_near_ones() -> None:
    model = model_of("llama")
    cap = actscope.capture(model, preset="fast_capture", sites=[0, 3], memory="64MiB", recorder=MemoryRecorder())
    assert cap.sites == ("layers.0.resid_post", "layers.3.resid_post")
    assert cap.config.memory_bytes == 64 << 20
    with pytest.raises(SettingsError, match="did you mean codec"):
        actscope.capture(model, codek="none")  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="did you mean 'balanced'"):
        actscope.capture(model, preset="balance")
    with pytest.raises(SettingsError, match="not both"):
        actscope.capture(model, preset="max", config=CaptureConfig())


def test_the_keyword_arguments_are_the_fields_of_the_configuration_and_take_their_types() -> None:
    """`CaptureSettings` may not drift from `CaptureConfig`: the same names, and the field's type or one that converts to it."""
    wider: dict[str, object] = {
        "sites": str | Iterable[str | int],
        "points": str | Iterable[str],
        "memory_bytes": int | str,
        "block_bytes": int | str,
        "segment_bytes": int | str,
        "throughput": float | str,
    }
    expected = {name: wider.get(name, kind) for name, kind in get_type_hints(CaptureConfig).items()}
    aliases = {name: expected[field] for name, field in _ALIASES.items()}
    assert get_type_hints(CaptureSettings) == expected | aliases


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "wait"},
        {"points": ("resid",)},
        {"granularity": "half"},
        {"granularity": "sampled"},
        {"granularity": "sampled:0"},
        {"granularity": "sampled:middle=3"},
        {"sample": 1.5},
        {"memory_bytes": 1},
        {"memory": "much"},
        {"direct": "maybe"},
        {"workers": -1},
    ],
)
def test_what_cannot_be_understood_or_met_is_refused(wrong: dict[str, object]) -> None:
    (value,) = wrong.values()
    with pytest.raises(SettingsError, match=re.escape(str(value[0] if isinstance(value, tuple) else value))):
        CaptureConfig().override(wrong)


@pytest.mark.parametrize(
    ("text", "n"), [("2GB", 2 * 10**9), ("512MiB", 2**29), ("1e9", 10**9), ("1.5 GB/s", 15 * 10**8)]
)
def test_sizes_are_read(text: str, n: int) -> None:
    assert parse_bytes(text) == n


def test_a_target_throughput_chooses_the_strongest_codec_that_keeps_up() -> None:
    """The choice gets weaker, or the workers more, as the rate grows, and the arithmetic is told."""
    chosen = [choose_codec("auto", 0, rate, cores=8) for rate in (1e8, 1e9, 3.4e9, 5e10)]
    assert [one.codec for one in chosen] == ["lossless", "lossless", "shuffle_lz4", "none"]
    assert [one.workers for one in chosen] == [1, 2, 4, 4]
    assert "1.00 GB/s / 0.8 GB/s a core (lossless) = 2 workers" in chosen[1].reason
    assert choose_codec("svd:8", 0, 1e9, cores=8).codec == "svd:8"


def test_a_sample_keeps_the_same_requests_everywhere() -> None:
    ids = [f"request-{i}" for i in range(4000)]
    kept = [i for i in ids if keeps(i, 0.1)]
    assert kept == [i for i in ids if keeps(i, 0.1)]
    assert 300 < len(kept) < 500
    assert set(kept) <= {i for i in ids if keeps(i, 0.3)}
    assert kept != [i for i in ids if keeps(i, 0.1, salt="other")]
    assert all(keeps(i, 1.0) for i in ids)
    assert not any(keeps(i, 0.0) for i in ids)
    assert keeps("request-17", 0.5) is False  # what it is now it must be for ever: recordings are compared by it


def test_only_sampled_requests_are_recorded() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    names = [f"q{i}" for i in range(12)]
    with (
        actscope.capture(model, sites="2", sample=0.4, recorder=recorder) as cap,
        cap.request(names),
        torch.no_grad(),
    ):
        model(torch.tensor(prompts(*[5] * 12)))
    assert recorder.requests == [name for name in names if keeps(name, 0.4)]
    assert 0 < len(recorder.requests) < 12
    assert recorder.ended == recorder.requests  # of the others nothing is known at all
    assert cap.stats().left_out_tokens == 5 * (12 - len(recorder.requests))


@pytest.mark.parametrize(
    ("granularity", "positions"),
    [
        ("full", list(range(16))),
        ("sampled:4", [0, 4, 8, 12]),
        ("sampled:first=2+last=3", [0, 1, 7, 8, 9]),
        ("sampled:generated", [10, 11, 12, 13, 14, 15]),
        ("sampled:6+generated+first=1", [0, 6, 10, 11, 12, 13, 14, 15]),
        ("sampled:prompt", list(range(10))),
    ],
)
def test_sampled_positions_keep_their_labels(granularity: str, positions: list[int]) -> None:
    """Rows, positions and token ids are those of the same run in full."""
    model, ids = model_of("llama"), torch.tensor(prompts(10))
    full, recorder = MemoryRecorder(), MemoryRecorder()
    for chosen, into in (("full", full), (granularity, recorder)):
        with actscope.capture(model, sites="1,2", granularity=chosen, recorder=into):
            model.generate(ids, max_new_tokens=7, do_sample=False, eos_token_id=None)
    for site in ("layers.1.resid_post", _POST):
        newest, everything = recorder.newest("r000001", site), full.newest("r000001", site)
        assert sorted(newest) == positions
        for position, (token, flags, row) in newest.items():
            assert (token, flags) == everything[position][:2]
            assert torch.equal(row, everything[position][2])
    reach = max(span.first_position + span.n_rows for step in recorder.steps for span in step.spans)
    assert reach == 16  # how far the request is, is known all the same


def test_granularity_may_choose_the_points() -> None:
    assert CaptureConfig(granularity="attention").read_points == ("attn_out",)
    assert explain(CaptureConfig.preset("mlp_analysis"), model_of("gpt2")).sites[0] == "layers.0.mlp_out"


@pytest.mark.parametrize("text", ["sampled:3", "sampled:first=4+last=2", "sampled:generated+5"])
def test_wanted_positions_are_those_of_the_definition(text: str) -> None:
    granularity = PositionFilter.parse(text)
    terms = dict(term.partition("=")[::2] for term in text.partition(":")[2].split("+"))
    for n_prompt in (0, 1, 7):
        got = granularity.wanted(np.arange(20)[None], np.array([n_prompt]))[0]
        for p in range(20):
            expected = any(
                (name.isdecimal() and p % int(name) == 0)
                or (name == "first" and p < int(value))
                or (name == "last" and n_prompt - int(value) <= p < n_prompt)
                or (name == "generated" and p >= n_prompt)
                for name, value in terms.items()
            )
            assert got[p] == expected


@pytest.mark.parametrize(("workers", "said"), [(1, "1 worker:"), (2, "2 workers:")])
def test_explaining_counts_workers(workers: int, said: str) -> None:
    plan = explain(CaptureConfig(codec="none", throughput=1e9, workers=workers), model_of("llama"))
    assert said in str(plan)
    assert "= 1 worker, of" in str(plan)


def test_explaining_states_bytes_per_token() -> None:
    model = model_of("llama")
    plan = explain(CaptureConfig(sites="0,1", points=("attn_out", "resid_post")), model, tokens_per_s=1000)
    assert plan.bytes_per_token == 2 * 2 * 64 * 4
    assert plan.gigabytes_per_s == pytest.approx(plan.bytes_per_token * 1000 / 1e9)
    assert "1.02 kB a token" in str(plan)
    assert "1.02 MB per 1,000 tokens" in str(plan)
    half = explain(CaptureConfig(sites="0,1", granularity="sampled:2", sample=0.5), model)
    assert half.bytes_per_token == 2 * 64 * 4 / 4


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_purpose_gives_a_config_that_says_why(purpose: str) -> None:
    config = actscope.auto_config(model_of("gpt2"), purpose=purpose, tokens_per_s=100)
    assert config.reason.startswith(f"{purpose}: ")
    assert "GPT2LMHeadModel has 4 blocks of width 64" in config.reason
    assert config.throughput > 0


def test_a_purpose_that_does_not_exist_names_near_ones() -> None:
    with pytest.raises(SettingsError, match="did you mean 'probes'"):
        actscope.auto_config(model_of("gpt2"), purpose="probe")


def test_a_model_without_blocks_is_read_by_its_lists_of_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    config = actscope.auto_config(model)
    assert config.sites == "1.*"
    assert set(explain(config, model).sites) == {"1.0", "1.1"}


def test_the_old_call_of_explain_still_answers_and_names_the_new_one() -> None:
    """`config.explain(model)` is kept for one release."""
    config, model = CaptureConfig(sites="0"), model_of("llama")
    with pytest.warns(DeprecationWarning, match=r"actscope\.explain"):
        old = config.explain(model)
    assert str(old) == str(explain(config, model))
