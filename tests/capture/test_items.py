"""Any torch module: one request for each item of the batch and call; and modules by their paths in any model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, padded, plain_hooks, prompts
from torch import nn

import actscope


class Net(nn.Module):
    """[batch, columns, 8] to [batch, columns, 4], with a pooled head of one row for each item."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.memory = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        out, _ = self.memory(self.stack(x))
        return self.head(out.mean(1))


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def test_items_of_a_batch_are_requests_and_positions_run_along_the_rest(recorder: MemoryRecorder) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 5, 8)
    with (
        plain_hooks({"stack.0": (model.stack[0], "out"), "stack.2:in": (model.stack[2], "in")}) as plain,
        actscope.capture(model, sites="stack.0,stack.2:in,memory,head", recorder=recorder) as cap,
    ):
        model(x)
        model(x[:1])
    assert recorder.requests == ["r000001", "r000002", "r000003", "r000004"]
    for site in plain:
        for item in range(3):
            assert torch.equal(recorder.rows(f"r00000{item + 1}", site), plain[site][0][item])
        assert recorder.ids("r000001", site) == [-1] * 5
    assert recorder.rows("r000004", "memory").shape == (5, 4)
    assert cap.stats().reasons == {"a module's rows are others than the tokens of the pass": 3 + 1}
    assert sorted(recorder.ended) == recorder.requests


def test_within_a_request_the_calls_of_a_loop_go_on_and_its_tokens_can_be_recorded(recorder: MemoryRecorder) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    with actscope.capture(model, sites="0", recorder=recorder) as cap, cap.request("loop"):
        for step in range(3):
            model(torch.randn(1, 1, 8))
            cap.record_token(step + 10, text=f"t{step}")
    assert sorted(recorder.newest("loop", "0")) == [0, 1, 2]
    assert recorder.tokens == [("loop", 1, 10, "t0"), ("loop", 2, 11, "t1"), ("loop", 3, 12, "t2")]


def test_rows_of_vectors_are_one_to_an_item(recorder: MemoryRecorder) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    with actscope.capture(model, sites="*", recorder=recorder):
        model(torch.randn(6, 8))
    assert recorder.requests == [f"r{i:06d}" for i in range(1, 7)]


@pytest.mark.parametrize(
    ("architecture", "sites", "n"),
    [
        ("llama", "model.layers.*.mlp", 4),
        ("gpt2", "transformer.h.1.attn,transformer.h.?.mlp.c_fc:in", 5),
        ("bert", "bert.encoder.layer.3.attention.self", 1),
        ("qwen2", "model.**.q_proj", 4),
        ("llama", "1,model.layers.2.input_layernorm:in", 2),
    ],
)
def test_modules_by_path_equal_plain_hooks(architecture: str, sites: str, n: int, recorder: MemoryRecorder) -> None:
    model = model_of(architecture)
    texts = prompts(4, 7)
    cap = actscope.capture(model, sites=sites, recorder=recorder)
    assert len(cap.sites) == n
    paths = {
        site: (
            model.get_submodule("model.layers.1" if site.endswith("resid_post") else site.removesuffix(":in")),
            "in" if site.endswith(":in") else "out",
        )
        for site in cap.sites
    }
    with plain_hooks(paths) as plain, cap, torch.no_grad():
        model(**padded(texts, left=False))
    for site in cap.sites:
        for lane, text in enumerate(texts):
            assert torch.equal(recorder.rows(f"r00000{lane + 1}", site), plain[site][0][lane, : len(text)])


def test_an_encoder_and_its_decoder_are_requests_of_their_own(recorder: MemoryRecorder) -> None:
    """T5 runs two texts in one call: each stack labels its own."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, eos_token_id=63)
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config).eval()  # type: ignore[no-untyped-call]
    ids = torch.randint(1, 60, (1, 7))
    with actscope.capture(model, sites="encoder.block.1,decoder.block.1", recorder=recorder) as cap:
        out = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert recorder.ids("r000001", "encoder.block.1") == ids[0].tolist()
    assert recorder.ids("r000002", "decoder.block.1") == out[0, :-1].tolist()
    assert cap.stats().unowned_rows == 0


def test_layers_of_an_encoder_decoder_are_its_decoders_and_its_encoder_is_named_by_path(
    recorder: MemoryRecorder,
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4)
    config.decoder_start_token_id = 0
    model: Any = T5ForConditionalGeneration(config)
    model.eval()
    ids, start = torch.randint(1, 60, (1, 7)), torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=start, output_hidden_states=True)
    with (
        actscope.capture(model, sites="all,final_norm,encoder.block.0:in,encoder.block.0", recorder=recorder) as cap,
        torch.no_grad(),
    ):
        model(input_ids=ids, decoder_input_ids=start)
    assert cap.sites == (
        *(f"layers.{layer}.resid_post" for layer in range(3)), "final_norm", "encoder.block.0:in", "encoder.block.0",
    )  # fmt: skip
    assert torch.equal(recorder.rows("r000001", "encoder.block.0:in"), expected.encoder_hidden_states[0][0])
    assert torch.equal(recorder.rows("r000001", "encoder.block.0"), expected.encoder_hidden_states[1][0])
    for site, index in (("layers.0.resid_post", 1), ("layers.1.resid_post", 2), ("final_norm", 3)):
        assert torch.equal(recorder.rows("r000002", site), expected.decoder_hidden_states[index][0])
    assert recorder.ids("r000002", "layers.2.resid_post") == start[0].tolist()


def test_of_a_final_norm_that_also_runs_before_the_blocks_the_last_run_is_kept(recorder: MemoryRecorder) -> None:
    from transformers import NanoChatConfig, NanoChatForCausalLM

    torch.manual_seed(0)
    config = NanoChatConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model: Any = NanoChatForCausalLM(config)
    model.eval()
    ids = torch.randint(3, 60, (1, 7))
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state
    with actscope.capture(model, sites="final_norm", recorder=recorder) as cap, torch.no_grad():
        model(ids)
        model(ids)
    for request in ("r000001", "r000002"):
        assert torch.equal(recorder.rows(request, "final_norm"), expected[0])
    assert cap.stats().unowned_rows == 0
