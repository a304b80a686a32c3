"""Peer of `bench feed` and `bench sae`: SAELens's ActivationsStore on the built-in model and text.

`python -m actscope.bench.support.saelens CONTEXT LAYER` reads seconds from standard input, line by line, and prints the
rows taken in that time.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore

#: Number of texts that both sides read. A store that has read them all starts over.
TEXTS = 4000
BATCH = 4096
_PROMPTS = 8192  # tokens of one forward pass, as the feed's `batch_tokens`
_BUFFER = 16384  # rows that are shuffled together, as many as the feed's two windows


def installed() -> bool:
    """Return whether SAELens is installed."""
    return find_spec("sae_lens") is not None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress its progress bars and warnings (of a deprecated module of transformer_lens, and of repeated texts)."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def texts(n: int) -> list[str]:
    """Return the first `n` texts of the dataset "builtin", in the order of their numbers."""
    from actscope.extraction.texts import open_texts

    return open_texts("builtin", n=n).read(range(n))


def open_model(layer: int) -> HookedProxyLM:
    """Load the built-in model through SAELens. A forward pass ends at the layer that is read."""
    from sae_lens.load_model import load_model

    from actscope.engines import builtin

    path = str(builtin.model_path())
    return load_model("AutoModelForCausalLM", path, device="cpu", hook_names=[hook(layer)])


def hook(layer: int) -> str:
    """Return SAELens's hook name for `layers.N.resid_post`."""
    return f"model.layers.{layer}"


def open_store(
    model: HookedProxyLM, read: list[str], *, layer: int, context: int, batch: int = BATCH, tokenized: bool = False
) -> ActivationsStore:
    """Create a store of the rows of `read`, without special tokens: an iterator of float32 [batch, width].

    With `tokenized` the texts are tokenized and concatenated beforehand, as SAELens advises, instead of on demand.
    """
    import torch
    from datasets import Dataset
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.util import get_special_token_ids

    dataset = Dataset.from_dict({"input_ids": _sequences(model, read, context)} if tokenized else {"text": read})
    return ActivationsStore(
        model=model,
        dataset=dataset,
        streaming=False,
        hook_name=hook(layer),
        hook_head_index=None,
        context_size=context,
        d_in=model.model.config.hidden_size,
        n_batches_in_buffer=_BUFFER // context,
        total_training_tokens=1,  # only a warning depends on it
        store_batch_size_prompts=_PROMPTS // context,
        train_batch_size_tokens=batch,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        exclude_special_tokens=torch.tensor(get_special_token_ids(model.tokenizer)),
    )


def _sequences(model: HookedProxyLM, read: list[str], context: int) -> list[list[int]]:
    import torch
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    ids = model.tokenizer(read, add_special_tokens=False)["input_ids"]
    bos = model.tokenizer.bos_token_id
    found = concat_and_batch_sequences(
        (torch.tensor(one) for one in ids), context, begin_batch_token_id=bos, sequence_separator_token_id=bos
    )
    return [one.tolist() for one in found]


def rows_in(store: ActivationsStore, seconds: float) -> tuple[int, float]:
    """Take rows for about that many seconds. Returns (rows, seconds)."""
    begin, rows = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        rows += len(next(store))
    return rows, time.perf_counter() - begin


def main(context: int, layer: int) -> None:
    with quiet():
        model, read = open_model(layer), texts(TEXTS)
        stores = [open_store(model, read, layer=layer, context=context, tokenized=how) for how in (False, True)]
        for store in stores:
            next(store)  # the first one fills its buffer
    print("ready", flush=True)
    for line in sys.stdin:
        with quiet():
            found = [rows_in(store, float(line) / 2) for store in stores]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
