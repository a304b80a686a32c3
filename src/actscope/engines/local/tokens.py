"""The tokenizer and the special tokens that a GGUF file describes.

transformers builds the tokenizer from the file's vocabulary and merges. How text is cut before the merges is only named in the
file (`tokenizer.ggml.pre`), and for a name that it does not know, transformers takes GPT-2's rule without a word. The tokens are
then not those that the model was trained with. Here the rule is set where it is known, and a warning is logged where it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from actscope.engines.local.gguf_file import GgufModelFile
from actscope.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("actscope.engine")

#: Names of a cut that transformers knows, or that is GPT-2's own.
_AS_GPT2 = frozenset(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v1-en", "roberta-bpe"))
#: Names of the cut that takes each digit for itself before GPT-2's (llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
_DIGITS_APART = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))
_CONTROL = 3  # of `tokenizer.ggml.token_type`
#: Keys of the metadata with ids that end an answer: end of sequence, of a turn, of a message.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def load_tokenizer(file: GgufModelFile, directory: str, name: str) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF file `directory/name`, with its chat template.

    Raises:
        EngineError: A token has an id outside the vocabulary.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    built = AutoTokenizer.from_pretrained(directory, gguf_file=name)
    backend: Tokenizer = built.backend_tokenizer
    _set_cut(file, backend)
    roles = {role: token for role, token in built.special_tokens_map.items() if isinstance(token, str)}
    # As its own class, which saves the whole of it: that of an architecture may build it anew from the vocabulary.
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)  # type: ignore[no-untyped-call]
    others = [token for token in built.all_special_tokens if token not in roles.values()] + _control_tokens(file)
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(others))})
    tokenizer.chat_template = built.chat_template
    tokenizer.model_max_length = file.number(f"{file.architecture}.context_length") or tokenizer.model_max_length
    _check_ids(file, tokenizer)
    return tokenizer


def _control_tokens(file: GgufModelFile) -> list[str]:
    """Return the tokens that stand for no text, such as the ends of turns."""
    types = file.metadata.get("tokenizer.ggml.token_type")
    tokens = file.strings("tokenizer.ggml.tokens")
    if not isinstance(types, Sequence) or len(types) != len(tokens):
        return []
    return [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]


def special_ids(file: GgufModelFile) -> dict[str, int | list[int]]:
    """Return `bos_token_id`, `eos_token_id` (a list if several end an answer) and `pad_token_id`, as far as the file has them."""
    ends = list(dict.fromkeys(i for key in _ENDS if (i := file.number(f"tokenizer.ggml.{key}")) is not None))
    found: dict[str, int | list[int] | None] = {
        "bos_token_id": file.number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.number("tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _set_cut(file: GgufModelFile, backend: Tokenizer) -> None:
    """Set how text is cut before the merges of a byte-level tokenizer."""
    from tokenizers import pre_tokenizers

    if file.metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    cut = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if cut in _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif cut not in _AS_GPT2 and cut not in _known_cuts():
        log.warning(
            "%s: its tokenizer cuts text by the rule %r, which is not known here; GPT-2's is used, and text may become "
            "other tokens than those that the model was trained with",
            file.path,
            cut,
        )


def _known_cuts() -> Container[str]:
    """Return the names of the cuts that the installed transformers sets itself."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # transformers before 5.20 knows none
        return ()
    known: Container[str] = GGUF_PRE_TOKENIZER_SPLITS
    return known


def _check_ids(file: GgufModelFile, tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = len(file.strings("tokenizer.ggml.tokens"))
    highest = max(tokenizer.get_vocab().values(), default=0)
    named = [i for value in special_ids(file).values() for i in (value if isinstance(value, list) else [value])]
    outside = [i for i in (*named, highest) if not 0 <= i < vocabulary]
    if outside:
        raise EngineError(f"{file.path}: token {outside[0]} is outside of its vocabulary of {vocabulary:,} tokens")
