"""Load a model with its tokenizer, and derive the facts that probes and readers need."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from actscope.engines.checkpoint_code import loading
from actscope.engines.hf.lanes.lanes import Calls, calls_of
from actscope.engines.hf.lanes.serving_check import checked_calls
from actscope.engines.local.checkpoint import check_checkpoint
from actscope.engines.local.names import NAMES, directory_of
from actscope.engines.revision import fingerprint
from actscope.errors import EngineError, SettingsError, SiteError
from actscope.runtime.cache import cache_place
from actscope.taps.anatomy import learn
from actscope.taps.text_model import blocks, input_device, stream_dtype, text_config

DTYPES = {
    "auto": "auto", "fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
    "fp16": torch.float16, "float16": torch.float16,
}  # fmt: skip
#: Tokens of the pass in which `adopt` sees what the blocks add to the stream.
_LEARNING_TOKENS = 12


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: The model of transformers.
        tokenizer: Its fast tokenizer.
        name: The name under which it was loaded.
        revision: The hub's commit, or a fingerprint of local weights.
        path: The hub id or directory from which it was loaded; "" for a model that was already in memory.
        calls: How the engine calls the model, and how sequences share its passes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    path: str
    calls: Calls = field(default_factory=Calls)

    @property
    def config(self) -> PreTrainedConfig:
        """Return the configuration of the text model."""
        return text_config(self.model)

    @property
    def device(self) -> torch.device:
        """Return the device on which the model takes its inputs, also if its weights are kept elsewhere (offloading)."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the residual stream, also if the weights are quantized."""
        return stream_dtype(self.model) or torch.float32

    @property
    def n_layers(self) -> int:
        """Return the number of transformer blocks that the model has. The config may name another one."""
        return len(blocks(self.model))

    @property
    def d_model(self) -> int:
        """Return the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def max_context(self) -> int:
        """Return the maximum length of a sequence in tokens; 2**30 if the configuration sets no limit."""
        return int(getattr(self.config, "max_position_embeddings", None) or 1 << 30)

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """Sampling parameters that the model recommends, for requests that do not set them."""
        config = self.model.generation_config
        names = ("temperature", "top_p", "top_k", "repetition_penalty") if config.do_sample else ()
        return {name: value for name in names if (value := getattr(config, name, None)) is not None}

    @property
    def last_logits_only(self) -> dict[str, int]:
        """The keyword argument that restricts logits to the last column, if the model supports it."""
        known = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        return {"logits_to_keep": 1} if known else {}

    @property
    def eos_ids(self) -> frozenset[int]:
        """All ids that end an answer: those of the generation config and the tokenizer's."""
        declared = self.model.generation_config.eos_token_id
        ids = declared if isinstance(declared, list) else [declared]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)


def load(model_id: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        model_id: A hub id, a local directory, a GGUF file, `actscope/smollm2` or `actscope/builtin`.
        device: A device of torch; "auto" is a GPU if there is one.
        dtype: One of `DTYPES`; "auto" is the checkpoint's own on a GPU (or any device but a CPU) and float32 on a CPU.
        trust_remote_code: Run Python code from the checkpoint, for a model that transformers has no class for.

    Returns:
        The model.

    Raises:
        SettingsError: `dtype` is unknown.
        EngineError: The model cannot be loaded or converted, needs code from its checkpoint, or `adopt` refuses it.
        MissingExtra: A package for the conversion of a GGUF file is not installed.
    """
    name = model_id
    source = str(directory_of(model_id) or model_id)
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    chosen = torch.float32 if dtype == "auto" and target == "cpu" else DTYPES[dtype]
    advice = f"Give a Hugging Face id, a directory with config.json, weights and a tokenizer, {NAMES}"
    with loading(model_id, "config.json", advice):
        if Path(source).is_dir():
            check_checkpoint(Path(source))
        elif source.startswith(
            (".", "/", "~")
        ):  # no id of the hub does; its client would only say what an id looks like
            raise EngineError(f"{source}: there is no such directory. {advice}")
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        _refuse_encoder_decoder(config, name)
    with loading(model_id, "its tokenizer (tokenizer.json, tokenizer_config.json, special_tokens_map.json)", advice):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    with loading(model_id, f"config.json and weights, on {target!r}", advice):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=chosen, config=config, trust_remote_code=trust_remote_code
        )
        model.to(target)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its types
        return adopt(model, tokenizer, name=name, path=source)


def _refuse_encoder_decoder(config: PreTrainedConfig, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise EngineError(
            f"{name} is an encoder-decoder, and the engine runs decoder-only language models: record it with "
            "actscope.capture(model), which reads its decoder, or with actscope.capture(model.get_encoder())"
        )


def _learn(model: PreTrainedModel, name: str) -> None:
    """Run the model once over a few tokens, to hold its points against it. Raises EngineError if it cannot run."""
    vocabulary = int(text_config(model).vocab_size)
    ids = torch.randint(vocabulary, (1, _LEARNING_TOKENS), generator=torch.Generator().manual_seed(0))
    try:
        learn(model, lambda: model(input_ids=ids.to(input_device(model)), use_cache=False))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise EngineError(f"{name} failed on a batch of 1 x {_LEARNING_TOKENS} tokens: {error}") from error


def adopt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, path: str = "") -> LoadedModel:
    """Wrap a model that is already in memory, and set it to evaluation mode without gradients.

    Raises EngineError if the model cannot be run or its rows cannot be labelled exactly: without a fast tokenizer, without
    recognizable blocks, for an encoder-decoder, or for a recurrent state that cannot be served exactly.

    Runs the model once over a few tokens (see `actscope.taps.anatomy.learn`).
    """
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(f"{name}: its tokenizer has no tokenizer.json; convert it to a fast tokenizer first")
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        raise EngineError(
            f"{name} is compiled by torch.compile, and compiled code does not run taps: load it uncompiled"
        )
    try:
        blocks(model)
    except SiteError as error:
        raise EngineError(f"{name}: {error}") from error
    _refuse_encoder_decoder(model.config, name)
    devices = {str(one.device) for one in model.parameters() if not one.is_meta}
    if len(devices) > 1:
        raise EngineError(
            f"{name} is spread over {', '.join(sorted(devices))}, and the engine runs a model on one device: load it on one, or "
            "record it with actscope.capture(model), which takes rows from any"
        )
    model.train(False).requires_grad_(False)
    _learn(model, name)
    config = text_config(model)
    calls = calls_of(model, config, recurrent=_is_recurrent(model))
    if calls.batching != "padded":
        calls = checked_calls(model, calls, int(config.vocab_size), name)
    commit = getattr(model.config, "_commit_hash", None)
    return LoadedModel(model, tokenizer, name, commit or fingerprint(Path(path)), path, calls)


def _is_recurrent(model: PreTrainedModel) -> bool:
    """Return whether a model has layers that keep a state other than keys and values."""
    kinds = set(getattr(text_config(model), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return bool(kinds) or bool(getattr(model, "_is_stateful", False))


def cache_dir(kind: str, loaded: LoadedModel, *, reuse: bool = True) -> Path:
    """Return the cache directory for data derived from this model at this revision. See `cache_place`."""
    name = f"{loaded.name.strip('/').replace('/', '--')}-{loaded.revision or 'local'}"
    return cache_place(kind, name, reuse=reuse)
