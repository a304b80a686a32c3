"""Adapters of PEFT: rows are those of the adapted model, and the recording says which adapters were active."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from support.capture.harness import MemoryRecorder, model_of

import actscope
from actscope.capture.plan import shape_of
from actscope.taps.text_model import active_adapters, blocks

#: PEFT reads a property of transformers that is deprecated, and tells what it does with GPT-2's layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
IDS = torch.arange(3, 15)[None]


def adapted(*names: str) -> Any:
    """A tiny Llama with LoRA adapters that change it, the first one active."""
    base = model_of("llama")
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model: Any = get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model.eval()


def facts_of(model: Any, to: Path) -> dict[str, Any]:
    with actscope.capture(model, sites="1", to=to), torch.no_grad():
        model(IDS)
    facts: dict[str, Any] = actscope.open(to).info["model"]
    return facts


def test_rows_of_an_adapted_model_equal_a_plain_hook_inside_it() -> None:
    model, recorder = adapted("mood"), MemoryRecorder()
    block = model.base_model.model.model.layers[1]
    seen: list[torch.Tensor] = []
    block.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with actscope.capture(model, sites="1", recorder=recorder) as cap, torch.no_grad():
        model(input_ids=IDS)
    assert blocks(model)[1] is block
    assert torch.equal(recorder.rows("r000001", "layers.1.resid_post"), seen[0][0])
    assert cap.stats().unowned_rows == 0


def test_generation_of_an_adapted_model_is_one_request() -> None:
    model, recorder = adapted("mood"), MemoryRecorder()
    with actscope.capture(model, sites="1", recorder=recorder) as cap:
        out = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert recorder.ids("r000001", "layers.1.resid_post") == out[0, :-1].tolist()
    assert cap.stats().unowned_rows == 0 and recorder.requests == ["r000001"]


def test_the_recording_names_the_active_adapters_and_the_model_inside(tmp_path: Path) -> None:
    model = adapted("mood", "other")
    facts = facts_of(model, tmp_path / "one.acts")
    assert (facts["adapters"], facts["architecture"], facts["n_layers"]) == (["mood"], "LlamaForCausalLM", 4)
    model.set_adapter("other")
    assert facts_of(model, tmp_path / "two.acts")["adapters"] == ["other"]
    with model.disable_adapter():
        assert "adapters" not in facts_of(model, tmp_path / "three.acts")
    model.merge_adapter()
    assert active_adapters(model) == ("other",)
    plain = model.unload()
    assert active_adapters(plain) == () and "adapters" not in shape_of(plain).facts()


def test_adapters_that_transformers_adds_itself_are_named_too() -> None:
    model: Any = model_of("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="own")
    assert active_adapters(model) == ("own",)
    model.disable_adapters()
    assert active_adapters(model) == ()


def test_a_learned_prefix_is_an_adapter() -> None:
    model: Any = get_peft_model(
        model_of("llama"), PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2), adapter_name="start"
    )
    assert active_adapters(model) == ("start",)
    assert len(blocks(model)) == 4


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma2", "bert"])
def test_blocks_are_found_behind_adapters_of_any_architecture(architecture: str) -> None:
    base = model_of(architecture)
    expected = blocks(base)
    model: Any = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    assert blocks(model) == expected and active_adapters(model) == ("default",)
