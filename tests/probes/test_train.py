"""Fitting: a planted direction is found, noise is not, and no text is on both sides of the split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actscope.engines.hf.probe_training import Trained
from actscope.errors import ProbeError
from actscope.probes.label_check import trainable_labels
from actscope.probes.labels import LabelledText, load_labelled, read_labelled
from actscope.probes.train import CHOOSE, FIT, Examples, Fit, ShrunkCovariance, fit, to_probe


def planted(strength: float, n: int = 3000, d: int = 24) -> Examples:
    rng = np.random.default_rng(1)
    labels = rng.random(n) < 0.3
    rows = rng.normal(size=(n, d)).astype(np.float32) * 5 + 2
    rows[:, 3] += strength * labels
    return Examples(rows, labels, np.arange(n) // 10)


def fitted(examples: Examples) -> Fit:
    return fit(examples, ShrunkCovariance.of(examples.rows, examples.texts))


def test_a_planted_direction_is_found_and_the_shuffled_control_is_not() -> None:
    result = fitted(planted(40.0))
    assert result.auroc > 0.99
    assert result.control is not None
    assert abs(result.control - 0.5) < 0.15
    assert result.fpr < 0.05
    assert int(np.abs(result.weight).argmax()) == 3


def test_without_signal_the_held_out_auroc_is_chance() -> None:
    assert abs(fitted(planted(0.0)).auroc - 0.5) < 0.1


def test_the_three_parts_share_no_text_and_leave_none_out() -> None:
    examples = planted(1.0)
    parts = [set(examples.part(*bounds).texts.tolist()) for bounds in ((0, FIT), (FIT, CHOOSE), (CHOOSE, 1))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(examples.texts.tolist()))


def test_a_fit_becomes_a_probe_whose_test_vectors_hold() -> None:
    probe = to_probe(fitted(planted(40.0)), label="planted", site="layers.0.resid_post", model="m", revision="r")
    probe.verify()
    assert len(probe.test_scores) == 4


def test_too_few_examples_are_an_error_that_counts_them() -> None:
    few = planted(1.0)
    with pytest.raises(ProbeError, match="positive tokens"):
        fitted(Examples(few.rows, np.zeros(len(few.labels), bool), few.texts))


def test_a_token_is_labelled_when_it_touches_a_span() -> None:
    text = LabelledText("a wolf ran", {"danger": ((2, 6),)})
    offsets = [(0, 0), (0, 1), (1, 6), (6, 10)]
    assert text.token_labels("danger", offsets).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "line", ['{"text": 3}', '{"text": "a"}', '{"text": "a", "spans": {"x": [[0, 2]]}}', '{"text": "a", "labels": {}}']
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "fine", "label": {"x": true}}\n' + line + "\n")
    with pytest.raises(ProbeError, match=r"labels\.jsonl:2: "):
        list(read_labelled(path))


def said(tmp_path: Path, content: bytes) -> str:
    """What is said of a label file with this content."""
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(ProbeError) as refused:
        load_labelled(path)
    return str(refused.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["empty", "blank"])
def test_a_label_file_without_a_text_is_refused_and_says_what_a_line_is(tmp_path: Path, content: bytes) -> None:
    """An empty one made `probe train` wait for ever."""
    assert said(tmp_path, content).startswith(
        'labels.jsonl: there is no text in it: expected one on each line, such as {"text"'
    )


def test_every_wrong_line_is_named_with_what_was_expected_and_found(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine", "label": {"x": true}}',
        b"text,label",
        b'{"text": "caf\xe9", "label": {"x": true}}',
        b'{"text": "", "label": {"x": true}}',
        b'{"text": "a", "label": {"../x": true}}',
        b'{"text": "a", "label": {"x": true}, "spans": {"x": []}}',
        b'{"text": "fine", "label": {"x": false}}',
    ]
    told = said(tmp_path, b"\n".join(lines)).splitlines()
    assert [line.split(": ", 1)[0] for line in told] == [f"labels.jsonl:{number}" for number in range(2, 8)]
    for line, named in zip(
        told,
        (
            'expected {"text": "The wolf ran."',
            "decode byte 0xe9",
            "empty",
            "name of a probe",
            "give one",
            "labels.jsonl:1",
        ),
        strict=True,
    ):
        assert named in line
    assert "found text,label" in told[0]
    assert len(said(tmp_path, b"x\n" * 50).splitlines()) == 21


def test_a_label_file_in_utf_16_is_named_as_that_and_a_mark_at_the_start_of_utf_8_is_skipped(tmp_path: Path) -> None:
    line = '{"text": "fine", "label": {"x": true}}'
    assert said(tmp_path, line.encode("utf-16")) == "labels.jsonl: expected UTF-8, found UTF-16: save it as UTF-8"
    (tmp_path / "labels.jsonl").write_bytes(line.encode("utf-8-sig"))
    assert load_labelled(tmp_path / "labels.jsonl").texts == [LabelledText("fine", {"x": ((0, 4),)})]


def test_a_text_that_comes_twice_is_one_text_with_the_labels_of_both_lines(tmp_path: Path) -> None:
    """Otherwise the same text would be fitted and held out, and the AUROC would be too good."""
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "hi", "label": {"x": true}}\n{"text": "hi", "label": {"y": false, "x": true}}\n')
    found = load_labelled(path)
    assert (found.texts, found.repeated) == ([LabelledText("hi", {"x": ((0, 2),), "y": ()})], 1)


def labelled(n: int, *positive: int) -> list[LabelledText]:
    return [
        LabelledText(f"this is text {i}", {"x": ((0, 12),) if i in positive else (), "y": ((0, 4),)}) for i in range(n)
    ]


def test_labels_that_cannot_be_trained_are_told_before_a_model_reads_the_texts() -> None:
    """One class only, too few in a part, and labels that no text has: each with its reason."""
    assert trainable_labels(labelled(100, *range(0, 100, 2))) == (["x", "y"], {})
    chosen, reasons = trainable_labels(labelled(100))
    assert chosen == ["y"] and reasons["x"].startswith("does not hold in all of the 100 texts that name it")
    assert trainable_labels(labelled(100, *range(100)))[1] == {}  # the rest of each text is what it does not hold in
    assert "held-out texts" in trainable_labels(labelled(100, 1, 5, 11, 13, 14, 15, 40))[1]["x"]
    with pytest.raises(ProbeError, match="no text is labelled z; the labels are x, y"):
        trainable_labels(labelled(100), ["z"])
    with pytest.raises(ProbeError, match="label 'x': does not hold"):
        trainable_labels(labelled(100), ["x"])


def test_a_probe_with_recall_0_is_of_no_use() -> None:
    """It cannot fire, however good its AUROC is."""
    good = fitted(planted(40.0))
    found = Trained(to_probe(good, label="x", site="layers.0.resid_post", model="m", revision="r"), good)
    assert found.why_not(0.95) == ""
    assert "held-out AUROC 0.5000" in replace(found, fit=replace(good, auroc=0.5)).why_not(0.95)
    assert replace(found, fit=replace(good, recall=0.0)).why_not(0.95).startswith("recall 0")
    assert replace(found, fit=replace(good, auroc=float("nan"))).why_not(0.95).startswith("held-out AUROC nan")
