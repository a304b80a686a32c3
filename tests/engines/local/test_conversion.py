"""A GGUF file becomes a model that computes what the file's writer had, once, whole, and private; or it is refused."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from support.local.writing import QUANTIZED, TEMPLATE, TOKENS, tensors_of, tiny_llama, write_gguf
from support.smollm2.chats import prompt_ids
from transformers import AutoTokenizer, LlamaForCausalLM

from actscope.engines.hf.loading import load
from actscope.engines.local import conversion
from actscope.engines.local.conversion import converted
from actscope.errors import EngineError, MissingExtra
from actscope.extraction.cutting import tokenizer_of
from actscope.feed.planning.model_facts import facts_of

IDS = [257, 10, 99, 200, 3, 258, 42, 7]
#: Positions far enough apart that slow rotations are seen.
FAR = tuple(range(0, 8000, 1000))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "actscope" / "gguf"


def logits(model: torch.nn.Module, positions: Sequence[int] = range(len(IDS))) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([IDS]), position_ids=torch.tensor([positions])).logits[0]
    return found


def refused(path: Path, match: str, cache: Path) -> None:
    """The file is refused, and nothing but locks is left in the cache."""
    with pytest.raises(EngineError, match=match):
        converted(path)
    assert not cache.is_dir() or [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_what_the_written_one_does(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tied)
    loaded = load(str(write_gguf(tmp_path / "a.gguf", model)))
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    assert loaded.config.rope_parameters["rope_theta"] == 50_000.0
    assert loaded.name == str(tmp_path / "a.gguf") and len(loaded.revision) == 16


def test_quantized_weights_are_those_that_the_format_describes(tmp_path: Path) -> None:
    """Every matrix equals the package gguf's own dequantization, bit for bit."""
    model = tiny_llama(False)
    directory = converted(write_gguf(tmp_path / "q.gguf", model, quantized=True))
    found = tensors_of(LlamaForCausalLM.from_pretrained(directory))
    for name, values in tensors_of(model).items():
        coarse = values.ndim == 2 and values.shape[1] % 32 == 0
        expected = dequantize(quantize(values, QUANTIZED), QUANTIZED) if coarse else values
        assert np.array_equal(found[name], expected), name


def test_every_door_takes_a_gguf_file(tmp_path: Path) -> None:
    """The model, the tokenizer without it, and the facts before anything is loaded."""
    path = str(write_gguf(tmp_path / "a.gguf", tiny_llama()))
    facts = facts_of(path)
    assert (facts.width, facts.n_layers, facts.context) == (64, 3, 256)
    assert facts.parameters == sum(p.numel() for p in tiny_llama().parameters())
    assert tokenizer_of(path).get_vocab() == load(path).tokenizer.get_vocab()


def test_the_second_start_reads_what_the_first_one_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By content: a copy under another name is not converted again, another file is."""
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    first = converted(path)
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted again"))
    copy = tmp_path / "b.gguf"
    copy.write_bytes(path.read_bytes())
    assert converted(path) == converted(copy) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert converted(write_gguf(tmp_path / "c.gguf", tiny_llama(False))) != first


def test_the_cache_is_private(tmp_path: Path, cache: Path) -> None:
    old = os.umask(0)
    try:
        directory = converted(write_gguf(tmp_path / "a.gguf", tiny_llama()))
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (cache, directory)} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()} == {0o600}
    assert "model.gguf" not in {p.name for p in directory.iterdir()}


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(EngineError, match="chmod 700"):
        converted(path)


def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while weights are written, and what a killed process leaves behind."""
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(path)
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = next(p.name for p in cache.iterdir()).removesuffix(".lock")
    (cache / f"{name}.0123456789abcdef.tmp").mkdir()
    (cache / f"{name}.0123456789abcdef.tmp" / "model.safetensors").write_bytes(b"half")
    directory = converted(path)
    assert sorted(p.name for p in cache.iterdir()) == sorted((directory.name, f"{name}.lock"))
    assert (directory / "model.safetensors").stat().st_size > 1000


def test_two_processes_at_once_convert_once(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        first, second = pool.map(_converted_with_inode, [path, path])
    assert first == second


def _converted_with_inode(path: Path) -> tuple[str, int]:
    directory = converted(path)
    return directory.name, (directory / "model.safetensors").stat().st_ino


def test_the_chat_template_and_the_special_tokens_are_kept(tmp_path: Path) -> None:
    loaded = load(str(write_gguf(tmp_path / "a.gguf", tiny_llama(), more=lambda w: w.add_eot_token_id(256))))
    tokenizer = loaded.tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (257, 258, 259)
    assert set(tokenizer.all_special_ids) >= {256, 257, 258, 259}
    assert loaded.eos_ids == {256, 258}
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "hell 12"}], answer=False)
    assert ids[0] == 257 and ids.count(258) == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\nhell 12<|im_end|>\n"


@pytest.mark.parametrize(("cut", "pieces"), [("smollm", ["hell", "Ġ", "1", "2"]), ("gpt-2", ["hell", "Ġ", "12"])])
def test_text_is_cut_as_the_file_says(cut: str, pieces: list[str], tmp_path: Path) -> None:
    """SmolLM's rule takes each digit for itself (llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM), GPT-2's takes numbers whole."""
    directory = converted(write_gguf(tmp_path / "a.gguf", tiny_llama(), cut=cut))
    assert AutoTokenizer.from_pretrained(directory).tokenize("hell 12") == pieces


def test_a_cut_that_is_not_known_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "actscope.engine"):
        converted(write_gguf(tmp_path / "a.gguf", tiny_llama(), cut="of-tomorrow"))
    assert "of-tomorrow" in caplog.text


def _without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def _renamed(tensors: dict[str, np.ndarray]) -> None:
    tensors["spare"] = tensors.pop("blk.1.ffn_up.weight")


def _with_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"] = np.full_like(tensors["blk.1.ffn_up.weight"], np.nan)


def _narrow(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:64]
    tensors["spare"] = np.zeros((32, 64), np.float32)


def test_weights_that_are_missing_do_not_fit_or_are_not_finite_are_refused(tmp_path: Path, cache: Path) -> None:
    """transformers would draw the missing ones at random, with a warning."""
    model = tiny_llama()
    refused(write_gguf(tmp_path / "a.gguf", model, change=_without("blk.1.ffn_up.weight")), "parameters", cache)
    refused(write_gguf(tmp_path / "b.gguf", model, change=_renamed), "not in it", cache)
    refused(write_gguf(tmp_path / "c.gguf", model, change=_narrow), "another shape", cache)
    refused(write_gguf(tmp_path / "d.gguf", model, change=_with_nan), "NaN", cache)


def test_what_transformers_would_leave_out_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    model = tiny_llama()
    scaled = write_gguf(
        tmp_path / "a.gguf", model, change=lambda t: t.update({"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)})
    )
    refused(scaled, r"rope_freqs\.weight", cache)
    factors = {"rope_factors_long.weight": np.ones(8, np.float32)}
    refused(write_gguf(tmp_path / "f.gguf", model, change=lambda t: t.update(factors)), "rope_factors_long", cache)

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)

    refused(write_gguf(tmp_path / "b.gguf", model, more=yarn), r"rope\.scaling\.type", cache)
    refused(write_gguf(tmp_path / "d.gguf", model, more=lambda w: w.add_sliding_window(32)), "sliding_window", cache)
    bias = write_gguf(
        tmp_path / "e.gguf", model, change=lambda t: t.update({"blk.0.attn_q.bias": np.ones(64, np.float32)})
    )
    refused(bias, "64 weights more than LlamaForCausalLM", cache)
    none = write_gguf(tmp_path / "c.gguf", model, more=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE))
    assert converted(none).is_dir()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_llama_3_is_rotated_as_it_was_trained(factor: float, tmp_path: Path) -> None:
    """llama.cpp stores what the frequencies are divided by; transformers' reader would leave it out without a word."""
    model = llama_3(factor)
    path = write_gguf(tmp_path / "a.gguf", model, change=lambda t: t.update({"rope_freqs.weight": divisors(factor)}))
    loaded = load(str(path))
    assert loaded.config.rope_parameters["factor"] == factor
    assert torch.allclose(logits(loaded.model, FAR), logits(model, FAR), atol=1e-5)
    assert not torch.allclose(logits(tiny_llama(), FAR), logits(model, FAR), atol=1e-3), "the factor changes nothing"


def llama_3(factor: float) -> LlamaForCausalLM:
    """`tiny_llama` with frequencies scaled as Llama 3.1 does."""
    model = tiny_llama()
    config = model.config
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 50_000.0, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaled = LlamaForCausalLM(config)
    scaled.load_state_dict(model.state_dict())
    scaled.eval()  # type: ignore[no-untyped-call]
    return scaled


def divisors(factor: float) -> np.ndarray:
    """What llama.cpp's converter writes for `llama_3`, by its formula (gguf-py, `LlamaModel.generate_extra_tensors`)."""
    found = []
    for i in range(8):
        wavelength = 2 * math.pi * 50_000.0 ** (i / 8)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        near, far = wavelength < 8192 / 4, wavelength > 8192 / 1
        found.append(1.0 if near else factor if far else 1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_a_model_larger_than_its_file_is_refused_before_it_is_made(tmp_path: Path, cache: Path) -> None:
    """A vocabulary of 2^30 words of width 64 would take 256 GB."""
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    data = path.read_bytes()
    at = data.index(b"llama.vocab_size") + len(b"llama.vocab_size") + 4
    path.write_bytes(data[:at] + (1 << 30).to_bytes(4, "little") + data[at + 4 :])
    refused(path, "describes a model of", cache)


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    path.write_bytes(path.read_bytes().replace(b"llama", b"lemma"))
    refused(path, "lemma", cache)


def test_a_disk_that_is_full_is_said_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage())
    refused(write_gguf(tmp_path / "a.gguf", tiny_llama()), "XDG_CACHE_HOME", cache)


class _Usage:
    free = 1000


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama())
    monkeypatch.setattr(conversion, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(MissingExtra, match=r"accelerate.*pip install 'actscope\[gguf\]'"):
        converted(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.gguf: no such file"):
        load(str(tmp_path / "absent.gguf"))


def test_the_tokens_of_the_model_are_those_of_the_file(tmp_path: Path) -> None:
    vocabulary = load(str(write_gguf(tmp_path / "a.gguf", tiny_llama()))).tokenizer.get_vocab()
    assert vocabulary == {token: i for i, token in enumerate(TOKENS)}


def test_no_file_beside_the_gguf_takes_part(tmp_path: Path) -> None:
    """A config or a tokenizer in the same folder is of another model."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "evil", "tokenizer_class": "GPT2Tokenizer"})
    )
    loaded = load(str(write_gguf(tmp_path / "a.gguf", tiny_llama())))
    assert loaded.config.model_type == "llama" and loaded.tokenizer.chat_template == TEMPLATE
