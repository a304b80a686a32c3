"""Facts about the model that vLLM serves, found without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from actscope.engines.local.names import name_of, shipped_probes
from actscope.engines.revision import fingerprint
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import ServedModel


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Facts about the model for readers and probes.

    `name` is the model's name in probe files, `revision` a hub commit or a fingerprint of the weights, and `tokenizer` a
    directory or "".
    """

    name: str
    revision: str
    tokenizer: str
    special_ids: tuple[int, ...]
    has_chat_template: bool
    probes: tuple[Path, ...]


def know(facts: ServedModel, settings: VllmSettings) -> KnownModel:
    """Return the facts of a model from its directory or the hub's cache.

    Without a hub commit this reads all local weights once, for their fingerprint.
    """
    local = Path(facts.source)
    own_name = name_of(local) if local.is_dir() else None
    name = settings.model_name or own_name or facts.source
    directory = _tokenizer_directory(facts)
    return KnownModel(
        name,
        facts.commit or fingerprint(local),
        str(directory) if directory else "",
        _special_ids(directory),
        _has_chat_template(directory),
        _probe_directories(settings, name, shipped_probes(own_name or "")),
    )


def _probe_directories(settings: VllmSettings, name: str, shipped: Path | None) -> tuple[Path, ...]:
    """Return the configured probe directories; else those shipped with the model, or those of this model in `probes/`."""
    if settings.probes:
        return tuple(Path(directory) for directory in settings.probes)
    if shipped is not None:
        return (shipped,)
    found = [Path("probes") / name.strip("/"), Path("probes") / Path(name).name]
    return tuple(path for path in dict.fromkeys(found) if path.is_dir())


def _tokenizer_directory(facts: ServedModel) -> Path | None:
    local = Path(facts.tokenizer)
    if (local / "tokenizer.json").is_file():
        return local.resolve()
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(facts.tokenizer, "tokenizer.json", revision=facts.commit or None)
    except (ImportError, ValueError):  # no hub client, or not a valid repository id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _special_ids(directory: Path | None) -> tuple[int, ...]:
    if directory is None:
        return ()
    added: dict[int, AddedToken] = Tokenizer.from_file(str(directory / "tokenizer.json")).get_added_tokens_decoder()
    return tuple(sorted(i for i, token in added.items() if token.special))


def _has_chat_template(directory: Path | None) -> bool:
    if directory is None:
        return True
    if any(directory.glob("chat_template*")):
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")
