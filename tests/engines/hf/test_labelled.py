"""Rows for probe training carry the labels of their own tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.hf.harness import hidden_states
from support.hf.tiny import tiny

from actscope.engines.hf.labelled import collect, tokenize, tokens_of
from actscope.engines.hf.probe_training import train_probes
from actscope.errors import ProbeError
from actscope.probes import train
from actscope.probes.labels import LabelledText
from actscope.sites import select

WORDS = ("wolf", "tree", "lamb", "rock", "fire")


def texts(n: int = 120) -> list[LabelledText]:
    """Sentences in which the bytes of "wolf" are labelled."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        words = rng.choice(WORDS, size=rng.integers(3, 9))
        text, spans = "", []
        for word in words:
            if word == "wolf":
                spans.append((len(text), len(text) + 4))
            text += word + " "
        found.append(LabelledText(text, {"wolf": tuple(spans)}))
    return found


def test_rows_are_those_of_a_plain_run_and_labels_those_of_their_characters() -> None:
    loaded, some = tiny("llama"), texts(20)
    rows = collect(loaded, some, select("0,2", 4))
    known, held = rows.labels(some, "wolf")
    assert known.all()
    for index, text in enumerate(some):
        own = rows.texts == index
        ids, offsets = tokenize(loaded, text.text)
        assert rows.offsets[own].tolist() == [list(o) for o in offsets]
        assert held[own].tolist() == [any(b <= start < e for b, e in text.spans["wolf"]) for start, _ in offsets]
        expected = hidden_states(loaded, ids)
        np.testing.assert_allclose(rows.rows["layers.2.resid_post"][own], expected[3], atol=1e-4)


def test_a_label_that_the_tokens_tell_is_found_and_its_shuffled_control_is_not() -> None:
    (trained,) = train_probes(tiny("llama"), texts(), select("all", 4))
    assert trained.fit.auroc > 0.95
    assert trained.fit.control is not None
    assert abs(trained.fit.control - 0.5) < 0.2
    trained.probe.verify()


def test_a_label_with_too_few_tokens_is_told_before_the_model_reads_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes were enough, so that the model read all texts first."""
    monkeypatch.setattr("actscope.engines.hf.probe_training.collect", None)
    monkeypatch.setattr("actscope.probes.train.MIN_EXAMPLES", 100)  # each part has more bytes, and fewer tokens
    told: dict[str, str] = {}
    assert train_probes(tiny("llama"), texts(60), select("0", 4), skipped=told.__setitem__) == []
    assert "positive tokens of" in told["wolf"] and "at least 100 of each kind are needed" in told["wolf"]
    with pytest.raises(ProbeError, match=r"label 'wolf': the .* texts have"):
        train_probes(tiny("llama"), texts(60), select("0", 4), ["wolf"])


def test_tokens_without_rows_are_those_of_the_rows() -> None:
    loaded, some = tiny("llama"), texts(20)
    tokens, rows = tokens_of(loaded, some), collect(loaded, some, select("0", 4))
    assert (tokens.texts.tolist(), tokens.offsets.tolist()) == (rows.texts.tolist(), rows.offsets.tolist())


def test_when_not_all_texts_fit_the_first_ones_are_read_whole_whatever_their_length() -> None:
    loaded, some = tiny("llama"), texts(20)
    lengths = [len(tokenize(loaded, text.text)[0]) for text in some]
    rows = collect(loaded, some, select("0", 4), max_bytes=4 * 64 * sum(lengths[:5]))
    assert [int((rows.texts == i).sum()) for i in range(20)] == lengths[:5] + [0] * 15
    known, held = rows.labels(some, "wolf")
    assert len(known) == len(held) == sum(lengths[:5])


def test_texts_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were passed over in silence."""
    told: list[tuple[int, int]] = []
    some = texts()

    def small(*given: Any, **more: Any) -> Any:
        return collect(*given, **more, max_bytes=4 * 64 * sum(len(text.text) for text in some) // 2)

    train_probes(tiny("llama"), some, select("0", 4), left_out=lambda *numbers: told.append(numbers))
    assert told == []
    monkeypatch.setattr("actscope.engines.hf.probe_training.collect", small)
    train_probes(tiny("llama"), some, select("0", 4), left_out=lambda *numbers: told.append(numbers))
    ((used, given),) = told
    assert 0 < used < given == len(some)


def test_no_texts_and_texts_without_a_token_are_errors_and_not_endless() -> None:
    with pytest.raises(ProbeError, match="there are no labelled texts"):
        collect(tiny("llama"), [], select("0", 4))
    special = tiny("llama").tokenizer.all_special_tokens[0]
    with pytest.raises(ProbeError, match="no tokens but special ones"):
        collect(tiny("llama"), [LabelledText(special, {"wolf": ()})], select("0", 4))


def test_a_requested_label_that_cannot_be_fitted_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are counted before the model is there, so that tokens can still be too few. Alone, such a label is the error."""
    both = [LabelledText(text.text, {**text.spans, "beast": text.spans["wolf"]}) for text in texts()]

    def fit(*given: Any, what: str, **more: Any) -> Any:
        if "beast" in what:
            raise ProbeError(f"{what}: too few tokens")
        return train.fit(*given, what=what, **more)

    monkeypatch.setattr("actscope.engines.hf.probe_training.fit", fit)
    told: dict[str, str] = {}
    trained = train_probes(
        tiny("llama"), both, select("all", 4), ["beast", "wolf"], skipped=lambda label, why: told.update({label: why})
    )
    assert ([one.probe.id for one in trained], told) == (["wolf"], {"beast": "too few tokens"})
    with pytest.raises(ProbeError, match="label 'beast': too few tokens"):
        train_probes(tiny("llama"), both, select("all", 4), ["beast"])
