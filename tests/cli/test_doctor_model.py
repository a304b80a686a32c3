"""`actscope doctor MODEL` says which points of a model are not what their names say, and what to name instead."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from support.hf.tiny import byte_tokenizer, tiny
from support.servers import COMMAND

from actscope.cli.doctor.model import points_of
from actscope.engines.hf.loading import LoadedModel


def verdicts(loaded: LoadedModel) -> dict[str, tuple[bool, str, str]]:
    return {finding.what: (finding.ok, finding.found, finding.remedy) for finding in points_of(loaded)}


def test_points_that_are_what_is_added_are_right() -> None:
    right = (True, "layers 0-3: what is read is what is added", "")
    for architecture in ("llama", "gpt2", "qwen2"):
        assert verdicts(tiny(architecture)) == {"attn_out": right, "mlp_out": right}


def test_a_norm_behind_the_module_is_told_with_its_name() -> None:
    found = verdicts(tiny("gemma2"))
    assert found["attn_out"] == (
        False,
        "layers 0-3: self_attn is read, but post_attention_layernorm is added to the stream",
        "name its module instead: model.layers.*.post_attention_layernorm",
    )
    assert not found["mlp_out"][0] and "post_feedforward_layernorm" in found["mlp_out"][2]


def test_the_command_prints_the_table_and_ends_with_1(tmp_path: Path) -> None:
    loaded: Any = tiny("gemma2")
    loaded.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path), "--json"], capture_output=True, text=True, timeout=120)
    lines = {line["what"]: line["ok"] for line in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (1, "")
    assert lines == {"model": True, "attn_out": False, "mlp_out": False}


def test_a_model_that_cannot_be_loaded_is_a_no(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout.startswith("NO   model") and "cannot load" in done.stdout
    assert "Traceback" not in done.stderr
