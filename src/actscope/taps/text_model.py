"""Finds the text model inside a model: its blocks, its final norm and its config.

    PEFT, compiled or parallel wrapper → model with its head → text model → stack: the module that runs a list of blocks

The model is asked for its text model first (`get_language_model`, `get_decoder`), so that an image or audio tower of the same
depth is not taken for it, and an encoder-decoder gives its decoder. The list of blocks is then found by its structure, and may
have another length than the config says: layers can have been deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from actscope.errors import SiteError
from actscope.taps import forward_source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Methods and attributes that lead to the text model, in the order in which they are asked. An encoder-decoder is asked for
#: `get_decoder` first. Of other models that may be a decoder of images or sound.
_ASKED = (
    "get_language_model", "language_model", "text_model", "text_decoder", "thinker", "vlm", "backbone_model", "llm",
)  # fmt: skip
_MOST_STEPS = 16
_BY_PATH = "name modules by their paths, for example 'encoder.*.mlp'"
#: Path and members of a list.
_Listed = tuple[str, list[nn.Module]]
#: Names of a list of blocks in the architectures of transformers and vLLM.
_LISTS = ("layers", "h", "blocks", "block", "layer")
#: Names of the final norm where the source of `forward` cannot be read.
_FINAL_NORM = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "layernorm", "layer_norm", "norm_f", "ln_out",
    "out_norm",
)  # fmt: skip
_NORM = re.compile(r"norm|^ln(_|$)", re.IGNORECASE)
#: Norms at the end of a block, in post-norm models, that lie inside a part of it. That of the last block is the final norm.
_BLOCK_END_NORM = ("output.LayerNorm", "ff.layer_norm")
#: Model types without blocks in the sense of a residual stream, by `config.model_type`.
_WITHOUT_BLOCKS = {
    "albert": "its layers share one module, which runs many times in a pass",
    "blt": "it has four stacks of blocks, on bytes and on patches",
    "funnel": "its blocks are groups of layers, between which the sequence is pooled",
    "hrm_text": "its two stacks of blocks run many times in a pass",
    "reformer": "its blocks keep two streams",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """The module of a text model that runs its list of blocks.

    Attributes:
        text_model: The text model.
        path: Path of the list below the text model, such as "model.layers".
        blocks: The blocks that run, first to last.
    """

    text_model: nn.Module
    path: str
    blocks: list[nn.Module]

    def owners(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield the modules that contain the list, from the nearest to the text model, with the path from each to the list."""
        names = self.path.split(".")
        for n in range(len(names) - 1, -1, -1):
            yield self.text_model.get_submodule(".".join(names[:n])), ".".join(names[n:])


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers of PEFT, `torch.compile` and DistributedDataParallel."""
    for _ in range(_MOST_STEPS):
        inner: object = None
        if hasattr(model, "peft_config") and callable(ask := getattr(model, "get_base_model", None)):
            inner = ask()
        elif isinstance(model, DistributedDataParallel):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module) or inner is model:
            break
        model = inner
    return model


def text_model(model: nn.Module) -> nn.Module:
    """Return the part of a model that reads and writes text: the decoder of an encoder-decoder. Itself if it has no such part."""
    found = unwrapped(model)
    for _ in range(_MOST_STEPS):
        inner = _asked(found)
        if inner is None:
            break
        found = inner
    return found


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of the text model, first to last, as many as really run.

    Raises:
        SiteError: There is no list of blocks, there are several and the model does not say which is the text model's, or one
            module stands for several blocks.
    """
    return stack(model).blocks


def stack(model: nn.Module) -> Stack:
    """Return the list of blocks of the text model and where it is. Raises SiteError as `blocks` does."""
    config = text_config(model)
    kind = type(model).__name__
    if (why := _WITHOUT_BLOCKS.get(getattr(config, "model_type", ""))) is not None:
        raise SiteError(f"{kind} has no blocks that can be numbered: {why}; {_BY_PATH}")
    text = text_model(model)
    wanted = getattr(config, "num_hidden_layers", None)
    found = _chosen(_lists(text), wanted)
    if len(found) != 1:
        raise SiteError(
            f"{kind}: expected one list of {wanted or 'some'} blocks of the text model, found "
            f"{', '.join(f'{path} ({len(one)})' for path, one in found) or 'none'}; {_BY_PATH}"
        )
    path, members = found[0]
    owner, name = next(Stack(text, path, members).owners())
    if isinstance(wanted, int) and wanted > 0 and forward_source.is_sliced(type(owner), name):
        members = members[:wanted]
    if len({id(one) for one in members}) < len(members):
        raise SiteError(
            f"{kind}: one module of {path} runs several times in a pass, so its rows are ambiguous; {_BY_PATH}"
        )
    return Stack(text, path, members)


def has_blocks(model: nn.Module) -> bool:
    """Return whether the model has blocks that can be numbered."""
    try:
        return bool(blocks(model))
    except SiteError:
        return False


def text_config(model: nn.Module) -> PreTrainedConfig:
    """Return the config of the text model, also inside a multimodal one. Raises SiteError without a config."""
    whole: PreTrainedConfig | None = getattr(unwrapped(model), "config", None)
    if whole is None:
        raise SiteError(f"{type(model).__name__} has no config, so its blocks cannot be found: {_BY_PATH}")
    config = getattr(text_model(model), "config", None) or whole
    if not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config()
    except ValueError:  # there are several, for example of a text encoder and a decoder
        return config.get_text_config(decoder=True)


def final_norm(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Return the last norm on the residual stream.

    Returns:
        The norm that the text model runs on its last block's output, or the one that ends the last block; and, for a norm that
        also runs elsewhere in a pass, the block after which its output is the row (else None).

    Raises:
        SiteError: There is no such norm, or no blocks.
    """
    found = stack(model)
    unread = []
    for owner, path in found.owners():
        names = forward_source.calls_after(type(owner), path)
        if names is None:
            unread.append(owner)
            continue
        norms = [name for name in names if _is_norm(name, getattr(owner, name, None))]
        if norms:
            again = forward_source.times_called(type(owner), norms[0]) > 1
            return owner.get_submodule(norms[0]), found.blocks[-1] if again else None
    for owner in unread:
        if (norm := first(owner, _FINAL_NORM)) is not None:
            return norm, found.blocks[-1]
    last = found.blocks[-1]
    own = [name for name in forward_source.calls(type(last)) if _is_norm(name, getattr(last, name, None))]
    for path in (*_BLOCK_END_NORM, *own[-1:]):
        norm = first(last, [path])
        parent, _, name = path.rpartition(".")
        if norm is not None and forward_source.ends_with(type(last.get_submodule(parent)), name):
            return norm, None
    raise SiteError(
        f"final_norm: {type(found.text_model).__name__} runs no norm after the blocks in {found.path}, and its blocks end with "
        "none; name a module by its path"
    )


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which the model takes token ids.

    Parameters that accelerate offloads are on the meta device. Its hook on the embeddings says where they run.
    """
    embeddings = _embeddings(model)
    hook: object = getattr(embeddings, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    parameters = (one.device for part in (embeddings, model) if part is not None for one in part.parameters())
    return next((device for device in parameters if device.type != "meta"), torch.device("cpu"))


def stream_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of the residual stream, as far as it is known without a pass: that of the embeddings.

    Quantized weights (integers, or floating point of 8 bits and less) do not count: the stream is not computed in their dtype. If
    the embeddings are quantized, it is the config's dtype, else that of the first other parameter that is not.
    """
    embeddings = _embeddings(model)
    if embeddings is not None:
        own, said = _wide_dtype(embeddings), getattr(getattr(unwrapped(model), "config", None), "dtype", None)
        if own is not None or isinstance(said, torch.dtype):
            return own or said
    return _wide_dtype(model)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters (LoRA and the like) that change the model's outputs now, sorted.

    Adapters that were merged into the weights count as long as PEFT can take them out again.
    """
    found: set[str] = set()
    for module in model.modules():
        layer = hasattr(module, "base_layer") and hasattr(module, "disable_adapters")
        if layer and not module.disable_adapters:
            held = getattr(module, "adapter_layer_names", ())
            own = {name for names in held for name in getattr(module, names, ())}
            found |= ({*_names(module.active_adapters)} & own) | {*_names(getattr(module, "merged_adapters", ()))}
    if not found and hasattr(model, "peft_config") and getattr(model, "prompt_encoder", None) is not None:
        found |= {*_names(getattr(model, "active_adapters", ()))}  # a learned prompt, not a layer
    return tuple(sorted(found))


def first(parent: nn.Module, paths: Sequence[str]) -> nn.Module | None:
    """Return the first of these paths that leads to a module, or None."""
    for path in paths:
        found: object = parent
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def _asked(model: nn.Module) -> nn.Module | None:
    """Return the text model that a model has inside, or None."""
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for name in ("get_decoder", *_ASKED) if both else (*_ASKED, "get_decoder"):
        inner = getattr(model, name, None)
        if name.startswith("get_") and callable(inner):
            try:
                inner = inner()
            except (NotImplementedError, AttributeError, TypeError):  # an interface that this model does not fill
                continue
        if not isinstance(inner, nn.Module) or inner is model or not _lists(inner):
            continue
        if both or name != "get_decoder" or not _is_named_decoder(model, inner):
            return inner
    return None


def _is_named_decoder(model: nn.Module, inner: nn.Module) -> bool:
    """Return whether a part is the model's child `decoder`, which can be one of images or sound."""
    return any(getattr(one, "decoder", None) is inner for one in (model, getattr(model, "base_model", None)))


def _lists(root: nn.Module) -> list[_Listed]:
    """Return path and members of the outermost lists of blocks, nearest to the root first."""
    found: list[_Listed] = []
    seen: set[nn.Module] = set()
    level = [("", root)]
    while level:
        below = []
        for path, parent in level:
            for name, child in parent.named_children():
                if child in seen:  # a module under two names
                    continue
                seen.add(child)
                here = f"{path}.{name}" if path else name
                if members := _members(name, child):
                    found.append((here, members))
                else:
                    below.append((here, child))
        level = below
    return found


def _members(name: str, module: nn.Module) -> list[nn.Module]:
    """Return the members of a list of blocks, else nothing.

    Members are modules with parts. Under an unusual name, these have parts too: projections, norms and embeddings for each layer
    are no blocks. vLLM's placeholders have no parts.
    """
    usual = name in _LISTS
    if not isinstance(module, nn.ModuleList | nn.Sequential) or (isinstance(module, nn.Sequential) and not usual):
        return []
    members = list(module)
    parts = [part for one in members if not isinstance(one, nn.ModuleList) for part in one.children()]
    return members if parts and (usual or any(True for part in parts for _ in part.children())) else []


def _chosen(found: list[_Listed], wanted: object) -> list[_Listed]:
    """Return the lists that can be the text model's, best one alone.

    A usual name counts first. The nearest to the root must agree with the length in the config if any list has that length.
    """
    found = [one for one in found if one[0].rpartition(".")[2] in _LISTS] or found
    nearest = [one for one in found if one[0].count(".") == found[0][0].count(".")]
    long = [one for one in found if len(one[1]) == wanted]
    both = [one for one in nearest if one in long]
    if long and not both:
        return [*nearest, *long]
    chosen = both or nearest
    if len(chosen) > 1:
        chosen = [one for one in chosen if "decoder" in one[0].split(".")] or chosen
    return chosen


def _embeddings(model: nn.Module) -> nn.Module | None:
    """Return the input embeddings of the text model, or None."""
    for part in (text_model(model), unwrapped(model)):
        ask = getattr(part, "get_input_embeddings", None)
        try:
            found = ask() if callable(ask) else None
        except (NotImplementedError, AttributeError, TypeError):
            continue
        if isinstance(found, nn.Module):
            return found
    return None


def _wide_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first parameter in whose dtype a residual stream can be computed, or None."""
    wide = (p.dtype for p in module.parameters() if p.dtype.is_floating_point and p.dtype.itemsize > 1)
    return next(wide, None)


def _names(given: object) -> tuple[str, ...]:
    """Return adapters' names, which PEFT and transformers keep as one name, as a list, or as a method that returns a list."""
    given = given() if callable(given) else given
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()


def _is_norm(name: str, module: object) -> bool:
    return isinstance(module, nn.Module) and bool(_NORM.search(type(module).__name__) or _NORM.search(name))
