"""The matrix with vLLM: rows in bfloat16 are held against one block at a time, and what is wrong with them is seen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from actscope.bench.models.architectures import Architecture, build
from actscope.bench.models.cases import SHAPE, run_plain
from actscope.bench.models.reference import Stream, calls_of, find_stream, watching
from actscope.bench.models.rows import Row
from actscope.bench.models.verdicts import MatrixEntry
from actscope.bench.models.vllm import HALF, SINGLE, Precision, check_run
from actscope.bench.models.vllm_engine import NEW, VllmRun, prompts


@dataclass(frozen=True)
class Served:
    """A model, and rows as an engine in bfloat16 gives them: those of the same model, rounded after every operation."""

    model: nn.Module
    stream: Stream
    ran: VllmRun

    def verdict(self, precision: Precision = HALF, alone: dict[str, tuple[int, ...]] | None = None) -> MatrixEntry:
        entry = MatrixEntry("llama", "causal", "vllm")
        check_run(entry, self.model, self.stream, self.ran, precision, alone or self.ran.texts)
        return entry

    def spoil(self, site: str, by: float) -> None:
        """Change one number of each of the site's rows by this part of the largest."""
        for rows in self.ran.rows.of.values():
            for row in rows[site].values():
                row.values[3] += by * row.values.abs().max()


@pytest.fixture
def served() -> Served:
    model = build(Architecture("llama", "causal"), scale=2)
    model.bfloat16().float()
    with calls_of(model) as calls:
        run_plain(model)
    stream = find_stream(model, calls, SHAPE)
    assert stream is not None
    rounded = build(Architecture("llama", "causal"), scale=2).bfloat16()
    ran = VllmRun()
    for number, prompt in enumerate(prompts()):
        text = list(prompt)
        with watching(rounded, stream) as watched, torch.no_grad():
            for _ in range(NEW):
                logits = rounded(input_ids=torch.tensor([text]), use_cache=False).logits[0]
                text.append(int(logits[-1].argmax()))
        ran.texts[f"m{number}"] = tuple(text)
        for site, value in watched.passes[-1].items():
            for position, values in enumerate(value[0]):
                ran.rows.of[f"m{number}"][site][position] = Row(text[position], values)
    return Served(model, stream, ran)


def test_rows_in_bfloat16_are_right_though_the_whole_model_in_float32_is_further_off(served: Served) -> None:
    assert served.verdict().verdict == "right"
    assert served.verdict(SINGLE).verdict != "right"


@pytest.mark.parametrize("site", ["embed", "layers.1.resid_pre", "layers.2.resid_post", "final_norm"])
def test_a_row_in_bfloat16_that_is_off_by_a_tenth_is_wrong(site: str, served: Served) -> None:
    served.spoil(site, 0.1)
    entry = served.verdict()
    assert entry.verdict == "wrong"
    assert "of the largest number" in entry.reason


def test_rows_of_another_block_are_wrong(served: Served) -> None:
    for rows in served.ran.rows.of.values():
        rows["layers.1.resid_post"] = rows["layers.0.resid_post"]
    assert served.verdict().verdict == "wrong"


def test_a_text_that_is_another_without_the_plugin_is_wrong(served: Served) -> None:
    alone = {**served.ran.texts, "m1": (*served.ran.texts["m1"][:-1], 5)}
    assert alone != served.ran.texts
    entry = served.verdict(alone=alone)
    assert entry.verdict == "wrong"
    assert "another with the plugin" in entry.reason
