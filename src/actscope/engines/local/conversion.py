"""A GGUF file as a directory for `from_pretrained`: converted once by transformers, kept in the cache by the file's content.

The weights are kept in float32, in which the file's blocks are exact; that takes 4 bytes a parameter. The next start reads the
directory, and so does vLLM.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from actscope.engines.local.gguf_file import GgufModelFile, read_gguf
from actscope.engines.local.model_config import check_whole, config_of
from actscope.engines.local.tokens import load_tokenizer
from actscope.errors import ActscopeError, EngineError, MissingExtra, RingError
from actscope.runtime.cache import cache_place
from actscope.runtime.memory import check_room
from actscope.runtime.private_files import check_private_dir
from actscope.runtime.publish import publish_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Raised when the result of a conversion changes, so that older results are not read.
CONVERSION = 1
_FILE = "model.gguf"


def converted(path: Path) -> Path:
    """Return the directory of a GGUF file's model, converted now if the cache does not have it.

    Args:
        path: The GGUF file.

    Returns:
        A private directory with config.json, model.safetensors, tokenizer.json and the chat template.

    Raises:
        EngineError: The file is no GGUF file or damaged, transformers cannot load it or would leave a part of it out, or the
            cache has no room.
        MissingExtra: A package of the extra `gguf` is not installed.
    """
    try:
        directory = _place_of(path)
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private_dir(directory.parent)
        if not directory.is_dir():
            file = read_gguf(path)
            _check_room(file, directory.parent)
            with publish_directory(directory) as empty:
                if empty is not None:
                    _convert(file, empty)
            _say(f"the model is kept in {directory}: the next start takes it from there")
        check_private_dir(directory)
    except RingError as error:
        raise EngineError(str(error)) from error
    except OSError as error:
        if isinstance(error, ActscopeError):
            raise
        raise EngineError(f"{path}: cannot be converted: {error.filename or ''}: {error.strerror or error}") from error
    return directory


class _LoadingReport(TypedDict):
    """What transformers says of the weights that it did not find, or found in another shape (first the name)."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, ...]]


def place_of_content(sha256: str) -> Path:
    """Return the directory in the cache for a GGUF file of this SHA-256, whether it exists or not."""
    return cache_place("gguf", f"{sha256[:32]}-{CONVERSION}")


def _place_of(path: Path) -> Path:
    if not path.is_file():
        raise EngineError(f"{path}: no such file; expected a GGUF file")
    with path.open("rb") as file:
        return place_of_content(hashlib.file_digest(file, "sha256").hexdigest())


def _check_room(file: GgufModelFile, directory: Path) -> None:
    check_room(
        4 * file.n_elements,
        EngineError,
        f"{file.path}: converting its {file.n_elements / 1e6:,.0f} M parameters to float32",
    )
    needed, free = 4 * file.n_elements, shutil.disk_usage(directory).free
    if needed > free:
        raise EngineError(
            f"{file.path}: its {file.n_elements / 1e6:,.0f} M parameters take {needed / 1e9:.1f} GB in {directory}, which has "
            f"{free / 1e9:.1f} GB free: set XDG_CACHE_HOME to a directory on a larger disk"
        )


def _convert(file: GgufModelFile, to: Path) -> None:
    """Write the model of a GGUF file to an empty directory."""
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra("gguf", package)
    size = file.path.stat().st_size
    _say(f"converting {file.path.name} ({size / 1e6:,.0f} MB, {file.n_elements / 1e6:,.0f} M parameters), once")
    link = to / _FILE  # alone in a directory, so that no file beside the GGUF file takes part
    link.symlink_to(file.path.resolve())
    try:
        _write_model(file, to)
    except ActscopeError:
        raise
    except Exception as error:  # transformers, gguf and tokenizers raise whatever their code meets in a damaged file
        raise EngineError(
            f"{file.path}: transformers cannot load it (architecture {file.architecture!r}): {type(error).__name__}: {error}\n"
            "Give the model's directory or Hugging Face id instead"
        ) from error
    finally:
        link.unlink(missing_ok=True)


def _write_model(file: GgufModelFile, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(file, str(to), _FILE)
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    check_whole(file, plain)
    tokenizer = load_tokenizer(file, str(to), _FILE)
    found = AutoModelForCausalLM.from_pretrained(
        to,
        config=config,
        gguf_file=_FILE,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    loaded, report = cast("tuple[PreTrainedModel, _LoadingReport]", found)
    _check_loaded(file, loaded, report)
    # `save_pretrained` refuses a model that came from GGUF, so its weights go into one that did not.
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.config.dtype = torch.float32
    _say(f"writing {4 * file.n_elements / 1e6:,.0f} MB")
    plain.save_pretrained(to)
    tokenizer.save_pretrained(to)


def _check_loaded(file: GgufModelFile, model: PreTrainedModel, report: _LoadingReport) -> None:
    """Raise EngineError if a weight was not in the file, did not fit, or is not finite. transformers draws such at random."""
    lacking = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if lacking:
        raise EngineError(
            f"{file.path}: {len(lacking)} weights of the model are not in it or have another shape, such as {lacking[0]!r}; the "
            "file is damaged, or transformers reads this kind wrong: give the model's directory or Hugging Face id instead"
        )
    for name, weights in model.named_parameters():
        if not bool(weights.isfinite().all()):
            raise EngineError(f"{file.path}: {name} has NaN or infinity; the file is damaged: download it again")


def _say(message: str) -> None:
    print(f"actscope: {message}", file=sys.stderr, flush=True)
