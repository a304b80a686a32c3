"""`actscope doctor MODEL` says what the points of a model are, and which are refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from support.hf.tiny import byte_tokenizer, tiny
from support.servers import COMMAND
from transformers import GraniteConfig, GraniteForCausalLM

from actscope.cli.doctor.model import points_of
from actscope.engines.hf.loading import LoadedModel, adopt


def findings(loaded: LoadedModel) -> list[tuple[str, bool, str]]:
    return [(finding.what, finding.ok, finding.found) for finding in points_of(loaded)]


def test_each_point_is_shown_with_the_module_that_computes_it() -> None:
    assert findings(tiny("llama")) == [
        ("attn_out", True, "layers 0-3: the output of self_attn"),
        ("mlp_out", True, "layers 0-3: the output of mlp"),
    ]
    assert findings(tiny("gemma2")) == [
        ("attn_out", True, "layers 0-3: the output of post_attention_layernorm"),
        ("mlp_out", True, "layers 0-3: the output of post_feedforward_layernorm"),
    ]


def test_a_model_in_half_precision_is_located_by_names() -> None:
    """Rounding of its stream hides small summands; the names give the same modules."""
    assert findings(tiny("gemma2", torch.bfloat16)) == findings(tiny("gemma2"))


def test_a_point_that_no_module_computes_is_a_no_with_the_reason() -> None:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, residual_multiplier=0.25, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    loaded = adopt(GraniteForCausalLM(config), byte_tokenizer(), name="tiny/granite")
    assert findings(loaded) == [("attn_out", False, "layers 0-1: refused"), ("mlp_out", False, "layers 0-1: refused")]
    reasons = [finding.remedy for finding in points_of(loaded)]
    assert all("0.25 x self_attn (attn_out) + 0.25 x mlp (mlp_out)" in reason for reason in reasons)


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    loaded: Any = tiny("gemma2")
    loaded.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path), "--json"], capture_output=True, text=True, timeout=120)
    lines = {line["what"]: line["ok"] for line in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (0, "")
    assert lines == {"model": True, "attn_out": True, "mlp_out": True}


def test_a_model_that_cannot_be_loaded_is_a_no(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout.startswith("NO   model") and "cannot load" in done.stdout
    assert "Traceback" not in done.stderr
