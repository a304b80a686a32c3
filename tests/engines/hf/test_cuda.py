"""The engine on a GPU: the same rows, scores and labels as on the CPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.hf.harness import Harness, random_probes, random_prompts
from support.hf.tiny import ARCHITECTURES, tiny

from actscope.frames import SCORES
from actscope.sites import select

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_scores_on_a_gpu_equal_output_hidden_states(architecture: str, dtype: torch.dtype) -> None:
    plain = tiny(architecture, dtype)
    loaded = dataclasses.replace(plain, model=plain.model.to("cuda"))  # type: ignore[arg-type]  # transformers types `to` without arguments
    probes, prompts = random_probes(), random_prompts((5, 30, 11, 40, 7, 22))
    with Harness(loaded, probes=probes, max_step_tokens=64, chunk_tokens=16) as run:
        run.engine.keep_rows(select("all", 4)).result()
        run.run(prompts)
    for name, prompt in prompts.items():
        ids, found = [*prompt, *run.ids(name)], run.rows(name)
        assert [found[p][0] for p in sorted(found)] == ids[:-1]
        with torch.no_grad():
            out = loaded.model(torch.tensor([ids], device="cuda"), output_hidden_states=True)
        expected = [h[0].float().cpu().numpy() for h in out.hidden_states]
        for position, (_, rows) in found.items():
            for layer in range(3):
                bound = 1e-4 if dtype == torch.float32 else 0.15 * max(1.0, np.abs(expected[layer + 1]).max())
                assert np.abs(rows[f"layers.{layer}.resid_post"] - expected[layer + 1][position]).max() < bound
            for column, probe in enumerate(probes):
                assert abs(rows[SCORES][column] - probe.score(rows[probe.info.site][None])[0]) < 1e-3
