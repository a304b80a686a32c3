"""Loading a model: code from a checkpoint waits for permission, and weights may be quantized, offloaded or cut."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hf.tiny import byte_tokenizer, tiny
from support.servers import COMMAND
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import actscope
from actscope.engines.hf.loading import adopt, load
from actscope.errors import EngineError, SettingsError
from actscope.extraction.cutting import tokenizer_of

_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()

class BroughtConfig(LlamaConfig):
    model_type = "brought_along"

class BroughtForCausalLM(LlamaForCausalLM):
    config_class = BroughtConfig
"""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with its own code, which leaves a file `ran` when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    checkpoint = tmp_path / "checkpoint"
    tiny("llama").model.save_pretrained(checkpoint)
    byte_tokenizer().save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "model_type": "brought_along",
        "auto_map": {"AutoConfig": "brought.BroughtConfig", "AutoModelForCausalLM": "brought.BroughtForCausalLM"},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "brought.py").write_text(_CODE.format(ran=str(tmp_path / "ran")))
    return checkpoint


@pytest.fixture
def silent_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(prompt: object = "") -> str:
        raise AssertionError(f"asked on the terminal: {prompt}")

    monkeypatch.setattr(builtins, "input", never)


@pytest.mark.usefixtures("silent_terminal")
def test_code_from_a_checkpoint_is_refused_without_a_question_and_runs_with_permission(brought: Path) -> None:
    with pytest.raises(
        EngineError, match=r"checkpoint: transformers has no class .* allow it with --trust-remote-code"
    ):
        load(str(brought))
    assert not (brought.parent / "ran").exists()
    loaded = load(str(brought), trust_remote_code=True)
    assert (type(loaded.model).__name__, loaded.n_layers) == ("BroughtForCausalLM", 4)
    assert (brought.parent / "ran").exists()


@pytest.mark.usefixtures("silent_terminal")
def test_the_code_of_a_tokenizer_is_refused_too(brought: Path) -> None:
    config = json.loads((brought / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "BroughtTokenizer", "auto_map": {"AutoTokenizer": [None, "brought.BroughtTokenizer"]}}
    (brought / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="allow it with --trust-remote-code"):
        tokenizer_of(str(brought))
    with pytest.raises(SettingsError, match="brings its own code: load it yourself"):
        actscope.capture(tiny("llama").model, tokenizer=str(brought))
    assert not (brought.parent / "ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["capture", "{model}", "{prompts}", "--to", "{out}"],
        ["doctor", "{model}"],
        ["serve", "{model}", "--port", "0"],
        ["probe", "train", "--model", "{model}", "--out", "{out}"],
    ],
)
def test_every_command_that_loads_a_model_names_the_flag(brought: Path, command: list[str]) -> None:
    prompts = brought.parent / "prompts.txt"
    prompts.write_text("hello\n")
    words = {"model": brought, "prompts": prompts, "out": brought.parent / "run.acts"}
    done = subprocess.run(
        [*COMMAND, *(word.format(**words) for word in command)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode
    assert "--trust-remote-code" in " ".join((done.stdout + done.stderr).split())
    assert not (brought.parent / "ran").exists()


def test_a_model_with_offloaded_weights_says_where_it_runs_and_is_captured_alike() -> None:
    """accelerate keeps the parameters on the meta device and brings each module's in for its call."""
    from accelerate import cpu_offload

    whole: Any = tiny("llama")
    ids = torch.arange(3, 11)[None]
    expected = whole.model(ids, output_hidden_states=True).hidden_states[2]
    cpu_offload(whole.model, execution_device=torch.device("cpu"))
    assert next(whole.model.parameters()).is_meta
    loaded = adopt(whole.model, whole.tokenizer, name="tiny/offloaded")
    assert (loaded.device, loaded.dtype, loaded.n_layers) == (torch.device("cpu"), torch.float32, 4)
    rows = actscope.capture(loaded.model, sites="1", to="unused")
    assert rows.sites == ("layers.1.resid_post",)
    kept: list[torch.Tensor] = []
    loaded.model.model.layers[1].register_forward_hook(lambda m, a, out: kept.append(out))
    loaded.model(ids)
    torch.testing.assert_close(kept[0], expected)


class _Int8(nn.Module):
    """As quantized layers look: integer weights, and scales of another precision."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale.half(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale.to(hidden.dtype))


def test_the_dtype_of_a_quantized_model_is_that_of_its_stream() -> None:
    from actscope.capture.plan import shape_of

    model: Any = tiny("llama", torch.bfloat16).model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Int8(child))
    loaded = adopt(model, byte_tokenizer(), name="tiny/int8")
    assert (shape_of(model).dtype, loaded.dtype) == ("bfloat16", torch.bfloat16)
    kept: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda m, a, out: kept.append(out))
    model(torch.arange(3, 11)[None])
    assert kept[0].dtype == loaded.dtype


def test_a_model_with_deleted_layers_has_as_many_as_are_left() -> None:
    model: Any = tiny("llama").model
    del model.model.layers[1:3]
    assert adopt(model, byte_tokenizer(), name="tiny/cut").n_layers == 2


def test_an_encoder_decoder_is_refused_with_what_works_before_its_weights_are_read(tmp_path: Path) -> None:
    config = T5Config(vocab_size=258, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    model: Any = T5ForConditionalGeneration(config)
    says = r"is an encoder-decoder.*actscope\.capture\(model\.get_encoder\(\)\)"
    with pytest.raises(EngineError, match=f"tiny/t5 {says}"):
        adopt(model, byte_tokenizer(), name="tiny/t5")
    config.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=says):
        load(str(tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in a directory."""
    directory = tmp_path_factory.mktemp("whole")
    tiny("llama").model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", "1000000"),
        ("num_hidden_layers", "1000000000"),
        pytest.param("num_hidden_layers", "1" + "0" * 5000, id="digits"),
        ("vocab_size", "1000000000000"),
        ("hidden_size", "1000000000"),
        ("num_local_experts", "1000000000"),
        ("num_attention_heads", "0"),
        ("hidden_size", '"x"'),
        ("model_type", "[1]"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_config_that_lies_is_refused_at_once(field: str, value: str, whole: Path, tmp_path: Path) -> None:
    """By an EngineError that names the file, before anything is built of its size."""
    place = tmp_path / "m"
    shutil.copytree(whole, place)
    config = {**json.loads((place / "config.json").read_text()), field: "VALUE"}
    (place / "config.json").write_text(json.dumps(config).replace('"VALUE"', value))
    began = time.process_time()
    with pytest.raises(EngineError, match=r"config\.json") as caught:
        load(str(place), device="cpu")
    assert time.process_time() - began < 5
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"],
    ids=["empty", "list", "number", "null", "binary", "deep", "digits"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_a_malformed_file_of_a_model_is_refused_or_read(name: str, data: bytes, whole: Path, tmp_path: Path) -> None:
    """By an EngineError that names the file, or the model loads; no error of a library gets through."""
    shutil.copytree(whole, tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(data)
    try:
        load(str(tmp_path / "m"), device="cpu")
    except EngineError as error:
        assert name in str(error) or "weights" in str(error)
    else:
        assert name in ("tokenizer_config.json", "config.json") and data.startswith(b'{"a"')
