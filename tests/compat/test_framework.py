"""The older framework's calls, as its own examples write them, on a real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hf.tiny import VOCABULARY, byte_tokenizer, tiny
from torch import Tensor

import actscope
from actscope.compat import (
    HookGranularity,
    InstrumentationConfig,
    InstrumentationFramework,
    analyze_activations_with_tokens,
    capture_activations,
    create_optimized_config,
    detect_model_architecture,
)
from actscope.compat.framework import TokenTracker
from actscope.errors import RecordingError, SettingsError

SITES = [f"layers.{layer}.resid_post" for layer in range(4)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama").model


def ids_of(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY - 2, (1, n), generator=torch.Generator().manual_seed(seed))


def generate(model: Any, tracker: TokenTracker, n: int, ids: Tensor) -> Tensor:
    """The loop of the older framework's example: every pass reads the whole sequence."""
    for _ in range(n):
        with torch.no_grad():
            token = model(ids).logits[:, -1, :].argmax(dim=-1, keepdim=True)
        tracker.record_token(token[0].item(), chr(65 + int(token[0]) % 26))
        ids = torch.cat([ids, token], dim=-1)
    return ids


def test_a_capture_is_a_recording_and_its_analysis_counts_its_bytes(model: Any, tmp_path: Path) -> None:
    """The example of the older framework's README; `output_path` opens with actscope.open."""
    path = tmp_path / "output.stream"
    with capture_activations(model, preset="balanced", output_path=path) as framework:
        hidden = model.model(ids_of(16), output_hidden_states=True).hidden_states
    analysis = framework.analyze_activations(path)
    recording = actscope.open(path)
    assert (recording[SITES[1]][:16] == hidden[2][0].detach().numpy()).all()
    assert analysis["per_layer"].keys() == set(SITES) and analysis["tokens"] == 16
    assert analysis["total_compressed_bytes"] == recording.summary()["stored_bytes"] > 0
    assert not path.with_name("output.stream_tokens.json").exists()


def test_tokens_are_in_their_file_and_in_the_recording(model: Any, tmp_path: Path) -> None:
    """One request, whose positions are the prompt and what was generated; the last token, which no pass read, is noted."""
    path = tmp_path / "gen.stream"
    with capture_activations(model, output_path=path, track_per_token=True) as framework:
        ids = generate(model, framework._trackers[-1], 5, ids_of(8))
    found = json.loads(path.with_name("gen.stream_tokens.json").read_text())
    assert found["total_tokens"] == 5 and found["capture_duration_seconds"] > 0
    assert [token["token_id"] for token in found["tokens"]] == ids[0, 8:].tolist()
    assert [token["token_index"] for token in found["tokens"]] == list(range(5))
    recording = actscope.open(path)
    assert recording.requests == ["generation"]
    assert [token.token_id for token in recording.tokens("generation")] == ids[0, :-1].tolist()
    assert recording.recorded_tokens()[-1].position == 12
    analysis = analyze_activations_with_tokens(path, framework)
    assert analysis["token_metadata"]["total_tokens"] == 5
    assert analysis.get("bytes_per_token") == analysis["total_compressed_bytes"] / 5


def test_the_outer_object_records_tokens_too(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.stream"
    with capture_activations(model, output_path=path, track_per_token=True) as framework:
        model(ids_of(4))
        framework.record_token(7, "x")
    assert json.loads((tmp_path / "a.stream_tokens.json").read_text())["tokens"][0]["token_text"] == "x"


def test_an_inner_capture_pauses_the_outer_one(model: Any, tmp_path: Path) -> None:
    """Each pass is in one recording: that of the innermost capture that runs."""
    outer, inner = tmp_path / "output.stream", tmp_path / "gen.stream"
    with capture_activations(model, output_path=outer) as framework:
        model(ids_of(3))
        with framework.capture_activations(inner, track_per_token=True) as tracker:
            generate(model, tracker, 2, ids_of(5))
        model(ids_of(6, seed=1))
    assert [len(actscope.open(outer).labels(request)) for request in actscope.open(outer).requests] == [3, 6]
    assert actscope.open(inner).requests == ["generation"] and actscope.open(inner).complete


def test_an_interrupted_capture_goes_on_with_its_rows_and_tokens(model: Any, tmp_path: Path) -> None:
    """The checkpoint has the tokens at the time of the error; it is gone after a clean end, and the file has all tokens."""
    path, checkpoint = tmp_path / "gen.stream", tmp_path / "elsewhere.json"
    framework = InstrumentationFramework(InstrumentationConfig.balanced())
    framework.instrument_model(model)
    options: dict[str, Any] = dict(track_per_token=True, checkpoint_interval_tokens=2, checkpoint_path=checkpoint)
    with pytest.raises(KeyError), framework.capture_activations(path, **options) as tracker:
        ids = generate(model, tracker, 3, ids_of(4))
        assert json.loads(checkpoint.read_text())["total_tokens"] == 2
        raise KeyError("interrupted")
    assert json.loads(checkpoint.read_text())["total_tokens"] == 3
    assert checkpoint.stat().st_mode & 0o777 == 0o600
    with framework.capture_activations(path, **options, resume_from_checkpoint=True) as tracker:
        assert len(tracker.tokens) == 3
        ids = generate(model, tracker, 2, ids)
    assert not checkpoint.exists()
    tokens = json.loads((tmp_path / "gen.stream_tokens.json").read_text())["tokens"]
    assert [token["token_id"] for token in tokens] == ids[0, 4:].tolist()
    recording = actscope.open(path)
    assert recording.requests == ["generation"]
    assert [token.token_id for token in recording.tokens("generation")] == ids[0, :-1].tolist()


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.stream.ckpt.json").write_text('{"tokens": 3}')
    framework = InstrumentationFramework()
    framework.instrument_model(model)
    with (
        pytest.raises(RecordingError, match=r"a\.stream\.ckpt\.json.*move it away"),
        framework.capture_activations(tmp_path / "a.stream", True, resume_from_checkpoint=True),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoint_interval_tokens": 4}, "track_per_token=True"),
        ({"resume_from_checkpoint": True}, "track_per_token=True"),
        (
            {"track_per_token": True, "checkpoint_interval_tokens": 0},
            "checkpoint_interval_tokens 0: expected at least 1",
        ),
        ({"preset": "balanced", "config": InstrumentationConfig.max()}, "a preset or a config"),
        ({"preset": "balance"}, "did you mean 'balanced'"),
    ],
)
def test_a_wrong_call_is_an_error_before_anything_is_written(
    model: Any, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words), capture_activations(model, output_path=tmp_path / "a", **arguments):
        pass
    assert list(tmp_path.iterdir()) == []


def test_record_token_needs_a_capture_that_tracks_tokens(model: Any, tmp_path: Path) -> None:
    with capture_activations(model, output_path=tmp_path / "a") as framework:
        with pytest.raises(SettingsError, match="track_per_token=True"):
            framework.record_token(1)
        model(ids_of(2))
    with pytest.raises(SettingsError, match="no capture runs"):
        framework.record_token(1)


def test_an_existing_recording_is_not_overwritten(model: Any, tmp_path: Path) -> None:
    for _ in range(2):
        first = not (tmp_path / "a").exists()
        try:
            with capture_activations(model, output_path=tmp_path / "a"):
                model(ids_of(2))
        except RecordingError as error:
            assert not first and str(tmp_path / "a") in str(error)
        else:
            assert first


def test_a_model_of_its_own_for_each_framework() -> None:
    framework = InstrumentationFramework()
    with pytest.raises(SettingsError, match="instrument_model"), framework.capture_activations("a"):
        pass
    framework.instrument_model(torch.nn.Linear(2, 2))
    with pytest.raises(SettingsError, match="another InstrumentationFramework"):
        framework.instrument_model(torch.nn.Linear(2, 2))


# --- configuration ---


@pytest.mark.parametrize(
    "name", ["fast_capture", "max", "balanced", "max_compression", "attention_analysis", "mlp_analysis"]
)
def test_each_preset_is_ours_of_that_name(name: str) -> None:
    assert getattr(InstrumentationConfig, name)().capture_config() == actscope.CaptureConfig.preset(name)


def test_overrides_change_the_configuration_in_place_and_are_ours() -> None:
    """The older builder changed the object that it was called on; code that ignores the result still works."""
    config = InstrumentationConfig.balanced()
    assert config.with_compression("zstd").with_memory_limit(16) is config
    config.with_granularity(HookGranularity.MLP_ONLY).with_throughput(2.0)
    ours = config.capture_config()
    assert (ours.codec, ours.memory_bytes, ours.granularity, ours.throughput) == ("zstd", 16 * 10**9, "mlp", 2e9)


@pytest.mark.parametrize("granularity", HookGranularity)
def test_every_granularity_and_field_is_understood(granularity: HookGranularity) -> None:
    config = InstrumentationConfig(
        granularity, compression_algorithm="lz4", target_throughput_gbps=0.5, max_memory_gb=24
    )
    assert config.capture_config().granularity == granularity.value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"compression_algorithm": "gzip"}, "expected one of lz4, zstd, none"),
        ({"granularity": "full"}, "HookGranularity.FULL_TENSOR"),
        ({"max_memory_gb": "16"}, "max_memory_gb '16': expected a number"),
        ({"target_throughput_gbps": -1}, "target_throughput_gbps -1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        InstrumentationConfig(**values)


def test_a_configuration_follows_from_architecture_and_purpose(model: Any, tmp_path: Path) -> None:
    arch = detect_model_architecture(model)
    assert arch == "llama" and detect_model_architecture(torch.nn.Linear(2, 2)) == "unknown"
    config = create_optimized_config(arch, purpose="performance_analysis")
    with capture_activations(model, config=config, output_path=tmp_path / f"{arch}.stream", tokenizer=byte_tokenizer()):
        model(ids_of(3))
    assert len(actscope.open(tmp_path / "llama.stream").sites) == 4
    with pytest.raises(SettingsError, match="did you mean 'debugging'"):
        create_optimized_config(arch, purpose="debuging")
