"""Hints for unknown names: what the user probably meant, and what the names of older tools are called here.

One table, `OLD_NAMES`, serves keyword arguments, attributes, command line flags, commands, variables, presets and settings.
`site_for` does the same for sites. A hint suggests only names that the place of the error has.

Sources of the names: the five systems that this project replaces, transformers 5.23, TransformerLens 3.9, SAELens 6.54, nnsight
0.5 and vLLM 0.32.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from types import FunctionType
from typing import ParamSpec, TypeVar

from actscope.errors import UnknownArgument

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class OldName:
    """Today's names of something that users of other tools call otherwise."""

    now: tuple[str, ...] = ()
    """Names here. The first one that the place of the error has is suggested."""
    note: str = ""
    """What to do instead, where no name fits. Also printed beside a name, if its value or its unit differs."""


def _same(note: str, *names: str) -> dict[str, OldName]:
    return dict.fromkeys(names, OldName(note=note))


def _called(now: str | tuple[str, ...], *names: str, note: str = "") -> dict[str, OldName]:
    return dict.fromkeys(names, OldName((now,) if isinstance(now, str) else now, note))


_ROWS: tuple[Mapping[str, OldName], ...] = (
    # where to write, and how to go on
    _called(("to", "out", "output"), "output_path", "output_dir", "output_file", "output", "out_path", "save_path", "save_dir",
              "cache_dir", "path", "file", "dest", "destination", "out", "cached_activations_path", "shared_storage_path"),
    _called("resume", "resume_from_checkpoint", "resume_from", "continue_from", "restart"),
    _same("a recording is its own checkpoint: give the same directory again, with resume", "checkpoint_path", "ckpt_path"),
    _called("checkpoint_tokens", "checkpoint_interval_tokens", "checkpoint_interval", "checkpoint_every"),
    # what to record
    _called("sites", "layers", "layer", "target_layer", "target_layers", "layer_ids", "layer_indices", "hook_name", "hook_names",
              "hook_point", "hook_points", "hook_layer", "names_filter", "module", "modules", "module_names", "capture_layers",
              "vllm_capture_layers", "eagle_aux_hidden_state_layer_ids", "site"),
    _called("sites", "output_hidden_states", "output_attentions", note="sites='embed,all' is all of hidden_states"),
    _called("points", "hook_type", "components", "streams", "point"),
    _same("every row has its position, token id and text: leave it out", "track_per_token", "record_tokens", "per_token"),
    _called(("sample", "rows"), "sample_rate", "sampling_rate", "vllm_capture_sample_rate", "capture_fraction", "fraction"),
    _called("full", "full_tensor", "fulltensor"),
    _called("sampled:8", "sampled_slices", "sampled", "slices"),
    _called("attention", "attention_only"),
    _called("mlp", "mlp_only"),
    # how to store it
    _called(("codec", "record_codec"), "compression_algorithm", "compression", "compressor", "compression_type", "algorithm"),
    _called(("codec", "record_codec"), "compression_k", "vllm_capture_compression_k", "compression_level", "svd_k",
              "n_components", note="for example svd:256 or zstd:3"),
    _called(("memory", "memory_bytes", "buffer_gb"), "max_memory_gb", "max_memory", "memory_limit", "memory_gb",
              "memory_limit_gb", "vllm_capture_buffer_size_gb", "buffer_size_gb", note='a size, such as "2GB"'),
    _called("throughput", "target_throughput_gbps", "target_throughput", "throughput_gbps", note='a size, such as "2GB"'),
    _called("workers", "num_workers", "n_workers", "num_threads"),
    _called("threads", "num_threads", "n_threads", "cpu_threads"),
    _called(("preset", "config"), "profile", "mode", "config_name"),
    _called("format", "fmt", "file_format", "output_format", "type"),
    # models and data
    _called(("path", "directory"), "path", "recording", "file", "run", "recording_path", "input", "input_path"),
    _called(("prompts", "texts"), "prompt_file", "prompts_file", "input_file", "prompt", "text"),
    _called("model", "model_name", "model_path", "model_id", "pretrained", "probe_model"),
    _called("dataset", "dataset_name", "dataset_path", "data"),
    _called("column", "text_column", "column_name", "text_field", "dataset_text_field"),
    _called(("width", "d_model"), "activation_dim", "d_in", "hidden_size", "d_model", "hidden_dim"),
    _called("context", "context_size", "ctx_len", "context_length", "max_length", "seq_len", "max_seq_len", "max_model_len"),
    _called(("batch_tokens", "batch", "max_batch", "batch_size"), "generation_batch_size", "batch_size",
              "train_batch_size_tokens", "store_batch_size_prompts", "model_batch_size", "refresh_batch_size", "max_batch_size"),
    _called("buffer_rows", "buffer_size", "n_batches_in_buffer", "n_ctxs", "max_samples_in_buffer", note="in rows"),
    _called(("texts", "tokens"), "total_training_tokens", "training_tokens", "n_tokens", "num_texts", "max_texts", "num_prompts"),
    _called("max_tokens", "max_new_tokens", "max_length", "num_tokens"),
    _called("chat", "apply_chat_template", "use_chat_template", "chat_template"),
    _called("mask", "exclude_special_tokens", "exclude_bos", "drop_bos"),
    _called("dtype", "torch_dtype", "activation_dtype", "autocast"),
    _called("trust_remote_code", "trust_code"),
    _called("seed", "random_seed"),
    # the feed's client
    _called("num_samples", "min_samples", "n_samples", "num_rows", "n_rows", "count", "n"),
    _called("batch_size", "batch_rows"),
    _called("ready_rows", "valid_samples", "num_valid", "available_samples"),
    _called(("get_activations_tensor", "take"), "get_tensor", "get_batch", "fetch", "sample_batch", "next_batch"),
    _called("get_stats", "stats", "buffer_stats", "get_buffer_stats", "status"),
    _called("token", "api_key", "auth_token", "key"),
    _called("url", "base_url", "server_url", "address", "endpoint"),
    # servers
    _called("upstream", "url", "vllm_url", "upstream_url", "backend", "backend_url"),
    _called("probes", "probe_dir", "probes_dir", "probe_path", "vectors"),
    _called(("cors_origins", "cors_origin"), "cors", "allow_origins", "origins"),
    _called(("probe_width", "width"), "max_probes", "num_probes"),
    _called("ring_rows", "ring_size", "slots"),
    _called("train_probes", "train"),
    _same("not needed: the plugin works in vLLM's compiled graphs", "enforce_eager"),
    _same("not needed: vLLM finds the plugin by itself where actscope is installed", "worker_cls", "worker_class"),
    _same("give it to vLLM itself", "tensor_parallel_size", "gpu_memory_utilization"),
    # functions, classes and methods
    _called("capture", "capture_activations", "run_with_cache", "run_with_hooks", "trace", "record", "instrument", "watch_model"),
    _called("analyze", "analyze_activations", "analyze_activations_with_tokens", "analyse",
              note="actscope.analysis.analyze(recording)"),
    _called("CaptureConfig", "instrumentation_config", "instrumentationconfig", "config_class"),
    _called("auto_config", "create_optimized_config", "optimized_config", "auto_detect", "detect_model_architecture"),
    _called("open", "load", "read", "load_recording", "read_activations", "from_disk"),
    _called("with_codec", "with_compression", "with_compression_algorithm"),
    _called("with_memory", "with_memory_limit", "with_max_memory"),
    _called("with_sites", "with_layers", "with_layer", "with_hooks"),
    _called("FeedClient", "activationclient", "activation_client", "client_class"),
    _called(("take", "iter"), "next", "get", "batches"),
    _called("sites", "layer_names", "keys", "hook_dict"),
    _called("record_token", "add_token", "log_token"),
    # presets and purposes
    _called(("debugging", "fast_capture"), "performance_analysis", "performance", "fast", "fastest", "quick"),
    _called(("max_compression", "archive"), "compression_max", "smallest", "small"),
    _called("balanced", "default", "standard", "normal"),
    _called("max", "maximum", "everything"),
    _called("attention_analysis", "attention"),
    _called("mlp_analysis", "mlp"),
    _called("large-scale", "large", "big", "large_scale"),
    _called("production", "prod"),
    _called("test", "testing", "config_test", "demo"),
    # commands
    _called("gateway", "proxy", "ui", "web", "page"),
    _called("watch", "sidecar", "monitor", "tail", "follow"),
    _called("feed", "activation_server", "activation-server", "server"),
    _called("serve", "run", "start"),
    _called("demo", "run_example", "example", "quickstart"),
    _called("info", "show", "describe", "summary", "inspect", "ls"),
    _called("export", "convert", "dump", "to_parquet"),
    _called("harvest", "cache_activations", "generate_activations"),
    _called("doctor", "check", "env", "diagnose"),
    _called("metrics io", "tracepoints", "tracepoints.py", "biolatency", "biosnoop", "iostat"),
    _called("metrics system", "system_metrics", "system_metrics.py", "offcputime"),
    _called("metrics report", "analyze_tracepoints", "analyze_tracepoints.py"),
    _called("probe train", "train"),
    _called("probe list", "list", "probes"),
    _same("it is an option: actscope --version", "version"),
    _same("it is an option: actscope --help, or --help behind a command", "help"),
)  # fmt: skip


def _merged(rows: Iterable[Mapping[str, OldName]]) -> dict[str, OldName]:
    """Return one table. A name in several rows has the names of all, in their order: its meaning depends on the place."""
    table: dict[str, OldName] = {}
    for row in rows:
        for name, old in row.items():
            before = table.get(name, OldName())
            table[name] = OldName((*before.now, *old.now), before.note or old.note)
    return table


#: Old or foreign names → today's. Keys and names are compared in lower case, with `_` for `-`, and without leading dashes.
OLD_NAMES: Mapping[str, OldName] = _merged(_ROWS)


#: Hooks of a block in TransformerLens, by the point that has the same rows (docs/layer-numbers.md).
HOOK_POINTS: Mapping[str, str] = {
    "hook_resid_pre": "resid_pre", "hook_in": "resid_pre",
    "hook_resid_post": "resid_post", "hook_out": "resid_post",
    "hook_attn_out": "attn_out", "ln1_post.hook_out": "attn_out",
    "hook_mlp_out": "mlp_out", "ln2_post.hook_out": "mlp_out",
}  # fmt: skip
_BLOCK = re.compile(r"(?:blocks|h|layers|layer)(?:\.|\[)(\d{1,9}|-1|\*)\]?\.(.+)")
_HIDDEN = re.compile(r"(?:\w+\.)*hidden_states?(?:\[|\.|_)?(-?\d{1,9})\]?")
_MODULE = re.compile(
    r"(?:[a-z_]\w*\.)*(?:layers|layer|h|blocks)(?:\.|\[)(\d{1,9}|\*)\]?(?:\.(?:output|input|nns_output))?(?:\[0\])?"
)
_NO_ROWS = {"hook_resid_mid": "no site reads the stream between attention and MLP; resid_post is the one after both"}


def site_for(name: str) -> str:
    """Return what a site of another tool is called here, or "" if the name is none that is known.

    `blocks.0.hook_resid_post` is `layers.0.resid_post`, `hidden_states[3]` is `layers.2.resid_post`, and
    `model.layers[3].output` is `layers.3.resid_post`. A `*` becomes `all`. docs/layer-numbers.md has the exceptions.
    """
    text = name.strip()
    if text in ("hook_embed", "hook_pos_embed", "embed_tokens", "wte", "embeddings"):
        return "embed"
    if text.startswith("ln_final") or text in ("norm", "ln_f", "final_layer_norm"):
        return "final_norm"
    if text in ("resid_pre", "resid_post", "attn_out", "mlp_out", "mixer_out"):
        return f"all.{text}"
    if match := _HIDDEN.fullmatch(text):
        entry = int(match[1])
        return (
            "final_norm" if entry == -1 else "embed" if entry == 0 else _block(str(entry - (entry > 0)), "resid_post")
        )
    if (match := _BLOCK.fullmatch(text)) and match[2] in HOOK_POINTS:
        return _block(match[1], HOOK_POINTS[match[2]])
    if (match := _MODULE.fullmatch(text)) and re.search(r"\[|\.(output|input|nns_output)$", text):
        return _block(match[1], "resid_pre" if text.endswith("input") else "resid_post")
    return ""


def why_no_site(name: str) -> str:
    """Return why no site has the rows of this hook of another tool, or ""."""
    return next((why for hook, why in _NO_ROWS.items() if name.rpartition(".")[2].startswith(hook)), "")


def _block(layer: str, point: str) -> str:
    return (
        f"all.{point}"
        if layer == "*"
        else f"layers.{layer}.{point}"
        if not layer.startswith("-")
        else f"{layer}.{point}"
    )


def known_as(name: str, known: Iterable[str]) -> str:
    """Return the known name that is this one, or that the table has for it, or ""."""
    plain = _plain(name)
    here = {_plain(one): one for one in known}
    names = (plain, *(_plain(one) for one in OLD_NAMES.get(plain, OldName()).now))
    return next((here[one] for one in names if one in here), "")


def near_names(name: str, known: Iterable[str]) -> tuple[list[str], str]:
    """Return the known names that an unknown one probably means, at most 2, and a note on what differs.

    Args:
        name: What the user wrote: `output_path`, `--output-path`, `VLLM_CAPTURE_LAYERS`.
        known: Names that the place has, in any form.
    """
    plain = _plain(name)
    here = {_plain(one): one for one in known}
    old = OLD_NAMES.get(plain, OldName())
    now = [here[_plain(one)] for one in old.now if _plain(one) in here]
    if now:
        return now[:1], old.note
    if old.note and not old.now:
        return [], old.note
    if near := get_close_matches(plain, here, n=2, cutoff=0.7):
        return [here[one] for one in near], ""
    for typed in get_close_matches(plain, OLD_NAMES, n=3, cutoff=0.8):  # an old name with a slip of the finger
        now = [here[_plain(one)] for one in OLD_NAMES[typed].now if _plain(one) in here]
        if now:
            return now[:1], OLD_NAMES[typed].note
    return [], ""


def hint(name: str, known: Iterable[str], otherwise: str = "", form: Callable[[str], str] = str) -> str:
    """Return the end of an error about an unknown name: "; did you mean to?", or `otherwise` if nothing is near.

    Args:
        name: What the user wrote.
        known: Names that the place has.
        otherwise: End of the sentence if nothing is near, such as "there are a, b, c". Empty: no hint.
        form: Writes a name as users do, e.g. with quotation marks.
    """
    near, note = near_names(name, known)
    if not near:
        return f"; {note or otherwise}" if note or otherwise else ""
    return f"; did you mean {' or '.join(map(form, near))}?" + (f" ({note})" if note else "")


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def hinted(call: Callable[P, R], owner: str = "") -> Callable[P, R]:
    """Make a function refuse an unknown keyword with a hint, instead of Python's bare TypeError.

    Args:
        call: The function. A function that takes any keyword is returned unchanged.
        owner: How the error calls it. Empty: the function's name.

    Returns:
        The function, which raises UnknownArgument (a TypeError) for a keyword that it does not have.
    """
    parameters = inspect.signature(call).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return call
    known = [
        one.name
        for one in parameters
        if one.kind is not inspect.Parameter.POSITIONAL_ONLY and one.name not in ("self", "cls")
    ]
    title = owner or getattr(call, "__name__", "this")

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise UnknownArgument(f"{title} has no argument {name!r}{hint(name, known, _listed(known))}")
        return call(*args, **kwargs)

    return checked


def _listed(known: Iterable[str]) -> str:
    names = ", ".join(known)
    return f"it takes {names}" if names else "it takes no arguments"


def hinted_class(cls: C) -> C:
    """Make a class's constructor, its public methods and its missing attributes answer unknown names with a hint."""
    for name, member in list(vars(cls).items()):
        if name == "__init__" and isinstance(member, FunctionType):
            setattr(cls, name, hinted(member, cls.__name__))
        elif not name.startswith("_") and isinstance(member, FunctionType):
            setattr(cls, name, hinted(member, f"{cls.__name__}.{name}"))
        elif not name.startswith("_") and isinstance(member, classmethod):
            setattr(cls, name, classmethod(hinted(member.__func__, f"{cls.__name__}.{name}")))

    def missing(self: object, name: str) -> object:
        public = [one for one in dir(cls) if not one.startswith("_")]
        near = "" if name.startswith("_") else hint(name, public)
        raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}{near}", name=name, obj=self)

    if not hasattr(cls, "__getattr__"):
        cls.__getattr__ = missing  # type: ignore[attr-defined]
    return cls
