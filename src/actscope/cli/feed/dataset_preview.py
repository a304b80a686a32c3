"""The first text of a dataset on the Hugging Face hub, without a download of the dataset."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from actscope.errors import MissingExtra, SettingsError
from actscope.extraction.quiet import quiet
from actscope.feed.settings import FeedSettings

_TIMEOUT_S = 5.0
_SHOWN = 40


def is_of_hub(spec: str) -> bool:
    """Return whether a dataset is named by its hub id, and not by a file, a directory or a glob."""
    path = Path(os.path.expanduser(spec))  # without a home directory, ~ stays
    is_path = spec.startswith((".", "/", "~")) or any(mark in spec for mark in "*?[") or path.suffix in _ENDINGS
    return not is_path and not path.exists()


_ENDINGS = (".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".gz", ".zst", ".xz", ".bz2")


def first_text(settings: FeedSettings) -> str:
    """Return where the dataset was found and how its first text begins.

    Without the hub (offline, or no answer within 5 seconds), a dataset in the local cache is accepted and not opened.

    Raises:
        SettingsError: The hub does not have the dataset, the split or the column, or it does not answer and the dataset is not
            in the local cache.
        MissingExtra: `datasets` is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", "datasets") from error

    name, _, config = settings.dataset.partition(":")
    if not _answers(name):
        return _cached(name, settings)
    try:
        with quiet():
            stream = datasets.load_dataset(name, config or None, split=settings.split, streaming=True)
            row = next(islice(stream, 1), None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise SettingsError(f"texts {settings.dataset!r}: {error}") from error
    if row is None or not isinstance(row.get(settings.column), str):
        found = ", ".join(row) if row else "no rows"
        raise SettingsError(f"texts {settings.dataset!r}: no column {settings.column!r} of strings: found {found}")
    return f"{settings.dataset} on the hub; the first text begins {beginning(row[settings.column])}"


def beginning(text: str) -> str:
    """Return the first 40 characters of a text, in quotes, on one line."""
    line = " ".join(text[: 4 * _SHOWN].split())
    return f'"{line[:_SHOWN]}…"' if len(line) > _SHOWN else f'"{line}"'


def _answers(name: str) -> bool:
    """Return whether the hub answers. Takes one short request; the hub's own client would retry for half a minute."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils._headers import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.get(f"{constants.ENDPOINT}/api/datasets/{name}", headers=build_hf_headers(), timeout=_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _cached(name: str, settings: FeedSettings) -> str:
    from datasets import config

    if (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        return f"{settings.dataset} is in the local cache; the hub does not answer, so the text was not checked"
    raise SettingsError(
        f"texts {settings.dataset!r}: it is not in the local cache, and the hub does not answer; name files instead, or "
        "the built-in text (--dataset builtin)"
    )
