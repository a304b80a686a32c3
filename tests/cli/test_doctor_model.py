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
from actscope.taps.text_model import blocks


def findings(loaded: LoadedModel) -> list[tuple[str, bool, str]]:
    return [(finding.what, finding.ok, finding.found) for finding in points_of(loaded)]


def test_each_point_is_shown_with_the_module_that_computes_it() -> None:
    assert findings(tiny("llama")) == [
        ("resid_pre", True, "layers 0-3: the input of the block"),
        ("attn_out", True, "layers 0-3: the output of self_attn"),
        ("mlp_out", True, "layers 0-3: the output of mlp"),
        ("resid_post", True, "layers 0-3: the output of the block"),
        ("final_norm", True, "the output of model.norm"),
    ]
    assert findings(tiny("gemma2"))[1:3] == [
        ("attn_out", True, "layers 0-3: the output of post_attention_layernorm"),
        ("mlp_out", True, "layers 0-3: the output of post_feedforward_layernorm"),
    ]


def test_a_model_in_half_precision_is_located_alike() -> None:
    assert findings(tiny("gemma2", torch.bfloat16)) == findings(tiny("gemma2"))


def granite() -> LoadedModel:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, residual_multiplier=0.25, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    return adopt(GraniteForCausalLM(config), byte_tokenizer(), name="tiny/granite")


def test_a_factor_is_shown() -> None:
    assert findings(granite())[1:3] == [
        ("attn_out", True, "layers 0-1: 0.25 x the output of self_attn"),
        ("mlp_out", True, "layers 0-1: 0.25 x the output of mlp"),
    ]


def test_a_point_that_no_module_computes_is_a_no_with_the_reason() -> None:
    model: Any = granite().model
    block = blocks(model)[1]
    forward = block.forward
    block.forward = lambda *a, **k: forward(*a, **k) * 1.01 + 0.1
    found = list(points_of(adopt(model, byte_tokenizer(), name="tiny/odd")))
    refused = {(finding.what, finding.found): finding.remedy for finding in found if not finding.ok}
    assert list(refused) == [("attn_out", "layers 1: refused"), ("mlp_out", "layers 1: refused")]
    assert all("what GraniteDecoderLayer adds to the stream is no sum" in reason for reason in refused.values())


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    loaded: Any = tiny("gemma2")
    loaded.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path), "--json"], capture_output=True, text=True, timeout=120)
    lines = {line["what"]: line["ok"] for line in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (0, "")
    assert lines == dict.fromkeys(["model", "resid_pre", "attn_out", "mlp_out", "resid_post", "final_norm"], True)


def test_a_model_that_cannot_be_loaded_is_a_no(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "doctor", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout.startswith("NO   model") and "config.json: no such file" in done.stdout
    assert "Traceback" not in done.stderr
