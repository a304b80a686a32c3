"""Settings on their way through real vLLM: what is refused at start, what compiles anew, what older tools called it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.ring.reading import segments_of
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines

from actscope.engines.vllm.settings import VllmSettings
from actscope.errors import EngineError

INSIDE = "support.vllm.inside:"
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "other sites": {"env": {"ACTSCOPE_SITES": "1,2"}},
    "the same sites in words": {"config": {"actscope": {"sites": "1,2"}}},
    "wider": {"config": {"actscope": {"width": 128}}},
    "a ring and probes": {"env": {"ACTSCOPE_RING_ROWS": "1024", "ACTSCOPE_PROBES": "/a;/b", "ACTSCOPE_BUFFER_GB": "1"}},
    "rows": {"env": {"ACTSCOPE_ROW_SITES": "all"}},
    "a recording": {"env": {"ACTSCOPE_RECORD": "/tmp/nowhere"}},
    "unknown": {"config": {"actscope": {"sights": "all"}}},
    "no number": {"env": {"ACTSCOPE_WIDTH": "many"}},
    "out of range": {"config": {"actscope": {"width": 0}}},
    "nobody to record": {"config": {"actscope": {"record": "/tmp/nowhere", "sidecar": False}}},
    "not an object": {"config": {"actscope": "all"}},
    "legacy": {
        "env": {
            "TARGET_LAYER": "2",
            "PROBE_MODEL": "llama",
            "VLLM_CAPTURE_LAYERS": "0,1",
            "VLLM_CAPTURE_SAMPLE_RATE": "0.25",
            "VLLM_CAPTURE_BUFFER_SIZE_GB": "3",
            "VLLM_CAPTURE_COMPRESSION_K": "8",
            "VLLM_CAPTURE_OUTPUT_DIR": "/tmp/nowhere",
        }
    },
    "capture": {"env": {"VLLM_CAPTURE_ENABLED": "1"}},
    "capture some": {
        "env": {
            "VLLM_CAPTURE_ENABLED": "1",
            "VLLM_CAPTURE_LAYERS": "0,3",
            "VLLM_CAPTURE_SAMPLE_RATE": "0.5",
            "VLLM_CAPTURE_COMPRESSION_K": "0",
            "ACTSCOPE_RECORD": "/tmp/mine",
        }
    },
    "capture off": {"env": {"VLLM_CAPTURE_ENABLED": "0", "VLLM_CAPTURE_LAYERS": "all"}},
    "capture unsaid": {"env": {"VLLM_CAPTURE_LAYERS": "all", "VLLM_CAPTURE_MODE": "fast"}},
    "capture overruled": {"env": {"VLLM_CAPTURE_LAYERS": "0", "ACTSCOPE_ROW_SITES": "1"}},
    "the fork's worker": {
        "env": {"VLLM_CAPTURE_ENABLED": "1"},
        "arguments": {
            "worker_cls": "vllm.v1.worker.gpu_worker_capture.WorkerCapture",
            "enforce_eager": True,
            "tensor_parallel_size": 1,
        },
    },
    "their folder of probes": {"env": {"TARGET_LAYER": "2", "PROBE_MODEL": "some-org/Some-Model"}},
    "others' settings": {"config": {"another": {"plugin": 1}}},
}


@pytest.fixture(scope="module")
def configured(
    model: Callable[[str], Path], bed_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What vLLM's own configuration came to in each case."""
    environment = Configuration(model("llama")).variables(bed_directory, bed_directory / "cache")
    cases = [{"config": {}, "env": {}, "arguments": {}} | case for case in CASES.values()]
    here = tmp_path_factory.mktemp("here")
    (here / "src/probes/Some-Model").mkdir(parents=True)
    command = [sys.executable, "-m", "support.vllm.configuring", str(model("llama")), json.dumps(cases)]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def test_the_compile_key_follows_the_graph_and_nothing_else(configured: dict[str, dict[str, Any]]) -> None:
    """Other sites, another width, raw rows: another key. The same by other means, rings, probes: the same key."""
    key = {name: answer.get("hash") for name, answer in configured.items()}
    assert key["plain"] == key["a ring and probes"]
    assert key["other sites"] == key["the same sites in words"]
    assert len({key["plain"], key["other sites"], key["wider"], key["rows"], key["a recording"]}) == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", ["sights", "settings are sites, row_sites"]),
        ("no number", ["width", "int"]),
        ("out of range", ["width"]),
        ("nobody to record", ["record", "sidecar"]),
        ("not an object", ["actscope", "an object", "'all'"]),
    ],
)
def test_a_wrong_setting_is_an_error_at_start(
    configured: dict[str, dict[str, Any]], name: str, words: list[str]
) -> None:
    """vLLM does not start, and the error says which setting, and which there are."""
    error = configured[name]["error"]
    assert error.startswith("SettingsError") and all(word in error for word in words), error


def test_variables_of_older_tools_are_understood(configured: dict[str, dict[str, Any]]) -> None:
    """Each has its meaning, and a line in the log that says what it is called here."""
    answer = configured["legacy"]
    settings = answer["settings"]
    assert (settings["sites"], settings["row_sites"], settings["probes"]) == ("2", "0,1", ["probes/llama"])
    assert (settings["sample"], settings["buffer_gb"], settings["codec"]) == (0.25, 3.0, "svd:8")
    assert settings["record"] == "/tmp/nowhere"
    for variable in CASES["legacy"]["env"]:
        assert sum(variable in line and "ACTSCOPE_" in line for line in answer["log"]) == 1, variable


def only_line(answer: dict[str, Any], *words: str) -> str:
    """The one line of the log with all of these words."""
    (line,) = [line for line in answer["log"] if all(word in line for word in words)]
    return str(line)


def test_the_capture_forks_switch_records_everything(configured: dict[str, dict[str, Any]]) -> None:
    """VLLM_CAPTURE_ENABLED=1 alone: every request, all layers, to a new folder below results/activations, which the log names."""
    settings = configured["capture"]["settings"]
    assert (settings["row_sites"], settings["sample"]) == ("all", 1.0)
    assert re.search(r"/results/activations/\d{8}-\d{6}-\d+\.acts$", settings["record"])
    only_line(configured["capture"], "VLLM_CAPTURE_ENABLED", f"ACTSCOPE_RECORD={settings['record']}", "layers all")


def test_the_capture_forks_other_variables_narrow_it(configured: dict[str, dict[str, Any]]) -> None:
    """Layers, sample and compression are taken; a setting under its own name takes precedence."""
    settings = configured["capture some"]["settings"]
    assert (settings["row_sites"], settings["sample"], settings["codec"]) == ("0,3", 0.5, "lossless")
    assert settings["record"] == "/tmp/mine"


def test_no_variable_of_the_capture_fork_is_passed_over_in_silence(configured: dict[str, dict[str, Any]]) -> None:
    """Switched off, unknown, overruled, or without anything that records: the log says so by name."""
    off, unsaid, overruled = (configured[f"capture {case}"] for case in ("off", "unsaid", "overruled"))
    assert (off["settings"]["row_sites"], off["settings"]["record"]) == ("", "")
    only_line(off, "VLLM_CAPTURE_ENABLED=0", "VLLM_CAPTURE_LAYERS have no effect")
    assert unsaid["settings"]["row_sites"] == "all"
    only_line(unsaid, "VLLM_CAPTURE_MODE has no effect", "VLLM_CAPTURE_COMPRESSION_K")
    only_line(unsaid, "nothing is recorded yet", "VLLM_CAPTURE_ENABLED=1")
    assert overruled["settings"]["row_sites"] == "1"
    only_line(overruled, "VLLM_CAPTURE_LAYERS has no effect", "ACTSCOPE_ROW_SITES")


def test_the_capture_forks_worker_is_vllms_own(configured: dict[str, dict[str, Any]]) -> None:
    """Scripts with its worker_cls run unchanged: vLLM has no such class, so the argument is ignored, and the log says so."""
    answer = configured["the fork's worker"]
    assert answer["worker_cls"] == configured["capture"]["worker_cls"] != "auto"
    only_line(answer, "worker_cls", "gpu_worker_capture", "leave it out")


def test_probes_are_found_where_the_older_plugin_kept_them(configured: dict[str, dict[str, Any]]) -> None:
    """src/probes/<last part of PROBE_MODEL>; TARGET_LAYER is the site of files that name none."""
    settings = configured["their folder of probes"]["settings"]
    assert (settings["probes"], settings["probe_site"]) == (["src/probes/Some-Model"], "layers.2.resid_post")


def test_the_settings_of_other_plugins_stay(configured: dict[str, dict[str, Any]]) -> None:
    """Entries of other plugins in `additional_config` are left as they are."""
    found = configured["others' settings"]["additional"]
    assert found["another"] == {"plugin": 1} and found["actscope"]["sites"] == "all"


def without_paths(log: str) -> str:
    """A log without the paths in it, which hold whatever the folder is called that the project was cloned into."""
    for folder in sorted({str(Path(__file__).parents[3]), sys.prefix, os.getcwd(), tempfile.gettempdir()}, key=len)[
        ::-1
    ]:
        log = log.replace(folder, "/")
    return re.sub(r"\S*/\S*", "", log)


def test_turned_off_it_touches_nothing(model: Callable[[str], Path], engines: Engines) -> None:
    """ACTSCOPE_DISABLE=1: no method is wrapped, no hook, no card, no segment, no word in the log; the tokens are the same."""
    off = engines.start(Offline, Configuration(model("llama"), environment={"ACTSCOPE_DISABLE": "1"}))
    (answer,) = off.generate([mixed.prompt(1, 40)])
    assert off.call(INSIDE + "wrapped") == [] and not off.call(INSIDE + "watched")
    assert list(off.runtime_directory.iterdir()) == [] and segments_of(off.started["pid"]) == []
    said = without_paths(off.log).replace("load_general_plugins", "").replace("- actscope -> actscope", "")
    assert "actscope" not in said
    ids = [*mixed.prompt(1, 40), *answer.token_ids]
    logits = mixed.truth(model("llama"), tuple(ids))[1][39:-1]
    assert logits.argmax(axis=1).tolist() == list(answer.token_ids)


# --- what cannot be watched ---


def worker_of(**changes: Any) -> Any:
    """As much of a worker as its place depends on; `changes` by dotted path, with "__" for the dots."""
    parallel = SimpleNamespace(
        data_parallel_size=1, prefill_context_parallel_size=1, decode_context_parallel_size=1, use_ubatching=False,
        pipeline_parallel_size=1,
    )  # fmt: skip
    config = SimpleNamespace(
        parallel_config=parallel,
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        speculative_config=None,
        model_config=SimpleNamespace(is_encoder_decoder=False, runner_type="generate"),
    )
    for path, value in changes.items():
        *parents, name = path.split("__")
        owner: Any = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return SimpleNamespace(vllm_config=config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel_config__prefill_context_parallel_size": 2}, "prefill context parallel"),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode context parallel"),
        ({"parallel_config__use_ubatching": True}, "microbatches"),
        ({"compilation_config__pass_config__enable_sp": True}, "sequence parallelism"),
        ({"parallel_config__pipeline_parallel_size": 2, "speculative_config": object()}, "speculative decoding"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "fast prefill"),
        ({"speculative_config": SimpleNamespace(enable_adaptive_verification=True)}, "adaptive verification"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_config__runner_type": "pooling"}, "pooling"),
    ],
)
def test_what_would_make_labels_uncertain_is_refused(changes: dict[str, Any], words: str) -> None:
    """The error names the feature; with `watch` it is logged and the engine runs without actscope."""
    from actscope.engines.vllm.plugin import place_of

    with pytest.raises(EngineError, match=words):
        place_of(worker_of(**changes))


def test_another_version_is_said_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An engine of an untested version is watched all the same, after a warning with both versions in it."""
    from actscope.engines.vllm import plugin, versions

    monkeypatch.setattr(versions, "TESTED", ((0, 98), (0, 99)))
    monkeypatch.setattr(
        "actscope.engines.vllm.session.RunnerSession", lambda *a: (_ for _ in ()).throw(EngineError("enough"))
    )
    monkeypatch.setattr(plugin, "place_of", lambda worker: None)
    monkeypatch.setattr(plugin, "_carried", lambda config: VllmSettings())
    with caplog.at_level("WARNING", "actscope.vllm"):
        plugin.watch(SimpleNamespace(model_runner=None, vllm_config=None))
    assert any("0.98.x to 0.99.x" in r.message and "0.32" in r.message for r in caplog.records)
    assert any("enough" in r.message for r in caplog.records if r.levelname == "ERROR")
