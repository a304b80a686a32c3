"""SmolLM2 in real vLLM, with the probes that are shipped for it: scores are transformers' own, from the prefix cache too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines.vllm.conftest import ALL
from support.smollm2.chats import CHATS, prompt_ids
from support.vllm import reference
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, Ring, card, external
from transformers import AutoTokenizer

from actscope.engines.local.names import directory_of
from actscope.engines.smollm2 import NAME, probes_path
from actscope.frames import RowFlag
from actscope.probes import load_probes

PROBES = load_probes(probes_path())
#: vLLM's kernels round otherwise than transformers'; measured 3.5e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def converted() -> Iterator[Path]:
    """The directory that vLLM serves, in a cache of this module's own that the engine shares."""
    cache = short_directory()
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(cache))
    directory = directory_of(NAME)
    assert directory is not None
    yield directory
    patch.undo()
    reference.load.cache_clear()
    shutil.rmtree(cache)


@pytest.mark.parametrize("compile", ["eager", *(["compiled"] if ALL else [])])
def test_eight_chats_at_once_with_prefix_hits_score_as_transformers_does(
    compile: str, converted: Path, engines: Engines
) -> None:
    """Each chat twice: the second time its prompt comes from the cache. No probe directory is named: they come with the model."""
    tokenizer = AutoTokenizer.from_pretrained(converted)
    prompts = [prompt_ids(tokenizer, chat) for chat in CHATS]
    environment = {"XDG_CACHE_HOME": str(converted.parents[2])}
    arguments = {"max_model_len": 1024, "max_num_batched_tokens": 1024, "kv_cache_memory_bytes": 512 << 20}
    engine = engines.start(
        Offline,
        Configuration(converted, compile=compile, arguments=arguments, environment=environment),  # type: ignore[arg-type]
    )
    found = card(engine)
    table = Control(found).table()
    assert set(table) == {probe.id for probe in PROBES}
    ring = Ring(found)
    for turn in ("first", "again"):
        engine.generate(prompts, [f"{turn}-{i}" for i in range(len(prompts))], max_tokens=16)
    seen = {external(request)[0]: one for request, one in ring.read().items()}
    ring.close()
    engines.end()
    assert sum(one.having(RowFlag.CACHED).sum() for name, one in seen.items() if name.startswith("again")) > 200
    streams: dict[tuple[int, ...], np.ndarray] = {}
    for i, prompt in enumerate(prompts):
        for name in (f"first-{i}", f"again-{i}"):
            rows, scores = seen[name].rows, seen[name].scores
            ids = rows["token_id"].tolist()
            assert rows["position"].tolist() == list(range(len(ids))) and ids[: len(prompt)] == prompt
            if tuple(ids) not in streams:
                streams[tuple(ids)] = reference.resid_post(converted, ids)
            for probe in PROBES:
                expected = probe.score(streams[tuple(ids)][probe.info.layer])
                np.testing.assert_allclose(scores[:, table[probe.id]["slot"]], expected, atol=TOLERANCE)
