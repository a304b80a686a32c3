"""A tiny LLaVA: the built-in model reads images through a random CLIP of two layers. Made offline, with its processor."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from actscope.engines.builtin import model_path

#: Pixels of a side, and placeholders of an image: one a patch of 14 by 14.
SIDE, PLACEHOLDERS = 56, 16
_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)


def make_llava(to: Path) -> Path:
    """Save the model and its processor to a folder."""
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = AutoConfig.from_pretrained(model_path())
    text.vocab_size = len(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=placeholder, image_seq_length=PLACEHOLDERS,
            vision_feature_select_strategy="default", vision_feature_layer=-1,
        )
    )  # fmt: skip
    plain: Any = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.model.language_model.load_state_dict(plain.model.state_dict())
    model.lm_head.load_state_dict(plain.lm_head.state_dict())
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor: Any = LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=_TEMPLATE,
    )  # type: ignore[no-untyped-call]  # fmt: skip
    for part in (model, processor):
        part.save_pretrained(to)
    weights = load_file(to / "model.safetensors")  # vLLM knows the names of earlier transformers
    earlier = {name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in weights.items()}
    save_file(earlier, to / "model.safetensors", {"format": "pt"})
    return to


def picture_of(seed: int) -> Image.Image:
    """A picture of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def data_url(image: Image.Image) -> str:
    """The picture as OpenAI's API takes it."""
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@torch.inference_mode()
def resid_post(path: Path, ids: list[int], images: list[Image.Image]) -> np.ndarray:
    """fp32 [layers, n, d]: the residual stream after each block, by plain hooks on transformers' model."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    processor: Any = LlavaProcessor.from_pretrained(path)
    rows: list[np.ndarray] = []

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        rows.append((output[0] if isinstance(output, tuple) else output)[0].numpy().copy())

    for block in model.model.language_model.layers:
        block.register_forward_hook(keep)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    model.eval()(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=False)
    return np.stack(rows)
