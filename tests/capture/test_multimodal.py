"""Tokens of models that read more than text: placeholders of images, tokens of a decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, padded, plain_hooks, prompts
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import actscope
from actscope.frames import RowFlag

IMAGE = 250
_TEXT: dict[str, Any] = dict(
    vocab_size=258, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=256, eos_token_id=257,
)  # fmt: skip


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def llava() -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**_TEXT), image_token_index=IMAGE, vision_feature_layer=-1
    )
    return LlavaForConditionalGeneration(config).train(False).requires_grad_(False)


def test_positions_of_an_image_have_the_placeholders_ids(recorder: MemoryRecorder) -> None:
    model = llava()
    text = torch.tensor([[256, 5, *[IMAGE] * 4, 6, 7]])
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = model.model.language_model.layers
    name = "model.language_model.layers.2"
    with (
        plain_hooks({name: (blocks[2], "out")}) as plain,
        actscope.capture(model, sites=name, recorder=recorder, policy="error") as cap,
    ):
        out = model.generate(
            input_ids=text, pixel_values=pixels, attention_mask=torch.ones_like(text), max_new_tokens=4, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", name) == out[0, :-1].tolist()
    assert recorder.ids("r000001", name)[2:6] == [IMAGE] * 4
    assert torch.equal(recorder.rows("r000001", name), torch.cat(plain[name], dim=1)[0])
    assert cap.stats().unowned_rows == 0


def test_a_part_that_is_given_embeddings_has_the_ids_that_generate_was_given(recorder: MemoryRecorder) -> None:
    """BLIP-2 has its language model generate from embeddings, and tells it the ids with the placeholders."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        ),
        qformer_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, encoder_hidden_size=32
        ),
        text_config=dict(
            model_type="opt", vocab_size=258, hidden_size=64, ffn_dim=96, num_hidden_layers=4, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=64, bos_token_id=256, eos_token_id=257, pad_token_id=1,
        ),
        num_query_tokens=4, image_token_index=IMAGE,
    )  # fmt: skip
    model: Any = Blip2ForConditionalGeneration(config).train(False).requires_grad_(False)
    text = torch.tensor([[*[IMAGE] * 4, 256, 6, 7]])
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    name = "language_model.model.decoder.layers.2"
    with (
        plain_hooks({name: (model.language_model.model.decoder.layers[2], "out")}) as plain,
        actscope.capture(model, sites=name, recorder=recorder, policy="error"),
    ):
        model.generate(
            input_ids=text, pixel_values=pixels, attention_mask=torch.ones_like(text), max_new_tokens=4, do_sample=False
        )
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", name)[:7] == text[0].tolist()
    assert torch.equal(recorder.rows("r000001", name), torch.cat(plain[name], dim=1)[0])


@pytest.mark.parametrize("implementation", [None, "static"])
def test_left_padded_prompts_with_images_and_positions_in_three_dimensions(
    implementation: str | None, recorder: MemoryRecorder
) -> None:
    """Qwen2-VL counts time, height and width; rows are labelled by the column that was fed."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e4}
    vision = dict(
        depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=4, spatial_merge_size=2,
        temporal_patch_size=2,
    )  # fmt: skip
    tokens = dict(image_token_id=IMAGE, video_token_id=249, vision_start_token_id=251, vision_end_token_id=252)
    sizes: dict[str, Any] = dict(text_config=dict(_TEXT, rope_parameters=rope), vision_config=vision, **tokens)
    model: Any = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**sizes)).train(False).requires_grad_(False)
    image = [251, *[IMAGE] * 4, 252]
    texts = [[256, *image, 6, 7], [256, 5, *image, 6, 7, 8]]
    batch = padded(texts, left=True)
    generator = torch.Generator().manual_seed(0)
    name = "model.language_model.layers.2"
    with (
        plain_hooks({name: (model.model.language_model.layers[2], "out")}) as plain,
        actscope.capture(model, sites=name, recorder=recorder, policy="error") as cap,
    ):
        out = model.generate(
            **batch, pixel_values=torch.randn(2 * 16, 3 * 2 * 4 * 4, generator=generator),
            image_grid_thw=torch.tensor([[1, 4, 4]] * 2), mm_token_type_ids=(batch["input_ids"] == IMAGE).int(),
            max_new_tokens=4, do_sample=False, eos_token_id=None, cache_implementation=implementation,
        )  # fmt: skip
    computed, width = torch.cat(plain[name], dim=1), len(texts[1])
    for lane, text in enumerate(texts):
        request = recorder.requests[lane]
        assert recorder.ids(request, name) == out[lane, width - len(text) : -1].tolist()
        assert torch.equal(recorder.rows(request, name), computed[lane, width - len(text) :])
    assert cap.stats().unowned_rows == 0


def encoder_decoder(kind: str) -> tuple[Any, str]:
    torch.manual_seed(0)
    model: Any
    if kind == "t5":
        sizes: dict[str, Any] = dict(
            vocab_size=258, d_model=64, d_kv=16, d_ff=96, num_layers=4, num_decoder_layers=4, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
        config = T5Config(**sizes)
        return T5ForConditionalGeneration(config).train(False).requires_grad_(False), "decoder.block"
    config_of_bart = BartConfig(
        vocab_size=258, d_model=64, encoder_layers=3, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=128,
        decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config_of_bart)
    return model.train(False).requires_grad_(False), "model.decoder.layers"


@pytest.mark.parametrize("implementation", [None, "static"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_generating_with_an_encoder_decoder_records_the_decoders_tokens(
    kind: str, implementation: str | None, recorder: MemoryRecorder
) -> None:
    model, blocks = encoder_decoder(kind)
    texts, name = torch.tensor(prompts(6, 6)), f"{blocks}.2"
    ask: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, num_beams=1)
    with (
        plain_hooks({name: (model.get_submodule(name), "out")}) as plain,
        actscope.capture(model, sites=name, recorder=recorder, policy="error") as cap,
    ):
        out = model.generate(texts, cache_implementation=implementation, **ask)
    computed = torch.cat(plain[name], dim=1)
    assert recorder.requests == ["r000001", "r000002"]
    for lane, request in enumerate(recorder.requests):
        assert recorder.ids(request, name) == out[lane, :-1].tolist()
        assert torch.equal(recorder.rows(request, name), computed[lane])
        flags = [bool(flag & RowFlag.PREFILL) for flag in recorder.flags(request, name)]
        assert flags == [True] + [False] * 4
        with plain_hooks({name: (model.get_submodule(name), "out")}) as again, torch.no_grad():
            model(input_ids=texts[lane : lane + 1], decoder_input_ids=out[lane : lane + 1, :-1], use_cache=False)
        torch.testing.assert_close(recorder.rows(request, name), again[name][0][0], rtol=1e-4, atol=1e-4)
    assert cap.stats().unowned_rows == cap.stats().incomplete_passes == 0
    assert sorted(recorder.ended) == recorder.requests


def test_an_encoder_is_recorded_by_name(recorder: MemoryRecorder) -> None:
    model, _ = encoder_decoder("t5")
    texts, name = torch.tensor(prompts(6, 6)), "encoder.block.1"
    with actscope.capture(model, sites=name, recorder=recorder, policy="error"):
        model.generate(texts, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [recorder.ids(request, name) for request in recorder.requests] == texts.tolist()
