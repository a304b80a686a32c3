"""One run of an engine with everything in it that can go wrong with labels, and the comparison with transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.vllm import reference
from support.vllm.bed import Generated, Offline
from support.vllm.models import LAYERS, VOCABULARY, WIDTH
from support.vllm.watching import Control, Ring, Seen, card, external, recording_of

from actscope.frames import RowFlag, SpanFlag
from actscope.probes import ACTIVATIONS, Probe, ProbeInfo
from actscope.probes.score import activate
from actscope.recording.reading.recording import Recording
from actscope.taps.anatomy import hidden_of, resolve

#: How far a row may be from the reference, as a share of the row's greatest number; a score, as a share of its column's.
ROW_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-4

#: A KV cache of 21 blocks of 32 (one is vLLM's own), passes of at most 64 tokens, and a few requests at once.
CROWDED = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "num_gpu_blocks_override": 22, "max_model_len": 512}
#: Every kind of place that has a name: what is tapped and recorded.
SITES = "embed,all.resid_pre,all.attn_out,all.mlp_out,all.resid_post,final_norm"
STREAM = [f"layers.{layer}.resid_post" for layer in range(LAYERS)]


def draw_probes(seed: int = 7) -> list[Probe]:
    """Every activation at each of three layers, and one probe at each other kind of place."""
    places = [(site, activation) for site in (STREAM[0], STREAM[2], STREAM[3]) for activation in ACTIVATIONS]
    places += [(site, "identity") for site in ("embed", "layers.1.resid_pre", "layers.1.mlp_out", "layers.2.attn_out")]
    places += [("final_norm", "relu")]
    random = np.random.default_rng(seed)
    probes = []
    for site, activation in places:
        weight = (random.standard_normal(WIDTH) * 0.05).astype(np.float32)
        jump = 0.2 if activation == "jumprelu" else 0.0
        info = ProbeInfo(id=f"{activation}-{site}", site=site, activation=activation, bias=0.1, jump=jump)
        probes.append(Probe(info, weight))
    return probes


def prompt(seed: int, n: int) -> list[int]:
    """`n` tokens, without the special ones."""
    found: list[int] = np.random.default_rng(seed).integers(2, VOCABULARY, n).tolist()
    return found


@dataclass
class Text:
    """What one choice of a request came to: its prompt, its answer, and whether it came to its end."""

    prompt: list[int]
    answer: tuple[int, ...]
    finished: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.answer)

    @property
    def computed(self) -> int:
        """How many of its tokens have been through the model: the last one of an answer has not."""
        return len(self.ids) - 1


@dataclass
class Ran:
    """A whole run: texts and what was seen of each, by (external id, choice); the recording, once the engine has ended."""

    model: Path
    texts: dict[tuple[str, int], Text]
    seen: dict[tuple[str, int], Seen]
    columns: dict[str, int]
    recording: Recording | None
    log: str
    greedy: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)


class Driver:
    """Adds requests, remembers their prompts, and collects what they come to."""

    def __init__(self, engine: Offline) -> None:
        self.engine = engine
        self.texts: dict[tuple[str, int], Text] = {}
        self.greedy: set[str] = set()
        self._prompts: dict[str, list[int]] = {}

    def add(self, id: str, prompt: Sequence[int], **params: Any) -> None:
        self._prompts[id] = list(prompt)
        if not params.get("temperature") and "allowed_token_ids" not in params:
            self.greedy.add(id)
        self.engine.add(id, prompt, **params)

    def step(self, n: int = 1) -> None:
        for outputs in self.engine.step(n):
            for output in outputs:
                self._note(output)

    def abort(self, *ids: str) -> None:
        self.engine.abort(*ids)

    def drain(self) -> None:
        for output in self.engine.drain().values():
            self._note(output)

    def _note(self, output: Generated) -> None:
        for choice in output.choices:
            self.texts[output.id, choice["index"]] = Text(
                self._prompts[output.id], tuple(choice["token_ids"]), output.finished
            )


def drive(driver: Driver, copies: int = 64) -> None:
    """The mixed run. Deterministic, so that two runs of it can be compared token for token."""
    driver.add("aborted", prompt(40, 40), max_tokens=60)
    for n in (1, 2, 5, 31, 32, 33, 70):
        driver.add(f"ragged-{n}", prompt(n, n), max_tokens=6)
    driver.add("aborted-in-prefill", prompt(41, 300), max_tokens=60)
    driver.add("long", prompt(300, 300), max_tokens=6)
    driver.step(6)
    driver.abort("aborted-in-prefill")
    driver.step(4)
    driver.abort("aborted")
    driver.drain()
    driver.add("long-again", prompt(300, 300), max_tokens=6)
    driver.add("ragged-70-again", prompt(70, 70), max_tokens=6)
    driver.add("several", prompt(9, 20), max_tokens=6, n=2, temperature=1.0, seed=3)
    driver.drain()
    for copy in range(copies):
        driver.add(f"same-{copy}", prompt(60, 60), max_tokens=9)
    driver.drain()


def run(engine: Offline, probes: Sequence[Probe], record: Path | None, drive: Callable[[Driver], None] = drive) -> Ran:
    """Run it all and end the engine."""
    found = card(engine)
    control = Control(found)
    status, answer = control.put_probe(probes[0])  # answered when the model has this one, and so all before it
    assert status == 200, answer
    columns = {probe: shown["slot"] for probe, shown in control.table().items()}
    ring = Ring(found)
    driver = Driver(engine)
    drive(driver)
    driver.add("last", prompt(3, 3), max_tokens=2)  # the ends of all others are told with its first pass
    driver.drain()
    seen = {external(request): one for request, one in ring.read().items()}
    ring.close()
    counts = engine.call("support.vllm.inside:counts") if engine.configuration.processes == 1 else {}
    engine.close()
    recording = recording_of(record) if record is not None else None
    return Ran(engine.configuration.model, driver.texts, seen, columns, recording, engine.log, driver.greedy, counts)


# --- the comparison ---


@cache
@torch.inference_mode()
def truth(model: Path, ids: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(rows [n, d] of each of SITES, logits [n, vocabulary]) of a text: plain hooks on transformers' model, fp32."""
    network = reference.load(model)
    rows: dict[str, np.ndarray] = {}
    hooks = []
    for site, location in resolve(network, SITES).items():

        def take(module: Any, args: Any, kwargs: Any, output: Any = None, name: str = site.name) -> None:
            value = output if output is not None else (args[0] if args else kwargs["hidden_states"])
            rows[name] = hidden_of(value)[0].clone().numpy()

        if location.side == "input":
            hooks.append(location.module.register_forward_pre_hook(take, with_kwargs=True))
        else:
            hooks.append(location.module.register_forward_hook(take, with_kwargs=True))
    try:
        logits = network(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return rows, logits


def check_labels(ran: Ran) -> None:
    """Every position of every text is there once, apart from what was computed again, and has the text's token."""
    assert set(ran.texts) <= set(ran.seen), sorted(set(ran.texts) - set(ran.seen))
    for key, text in ran.texts.items():
        seen = ran.seen[key]
        kept = seen.rows[seen.kept]
        assert seen.n_prompt == len(text.prompt)
        assert kept["token_id"].tolist() == [text.ids[p] for p in kept["position"]], key
        first = kept[(kept["flags"] & int(RowFlag.RECOMPUTED)) == 0]
        n = len(first)
        ran_ahead = not text.finished and n == text.computed + 1  # it was aborted while its last token was on its way
        assert (n == text.computed or ran_ahead) and sorted(first["position"].tolist()) == list(range(n)), key
        prefill = (kept["flags"] & int(RowFlag.PREFILL)) != 0
        assert (prefill == (kept["position"] < len(text.prompt))).all(), key
        assert seen.spans[0] & SpanFlag.FIRST and not any(flag & SpanFlag.FIRST for flag in seen.spans[1:]), key
        if key[0] != "last":
            assert seen.spans[-1] & SpanFlag.END and not any(flag & SpanFlag.END for flag in seen.spans[:-1]), key


def check_counts(ran: Ran) -> None:
    """The plugin's own account is exact, and nothing failed or was lost on the way."""
    flags = np.concatenate([seen.rows["flags"] for seen in ran.seen.values()])
    cached = int(((flags & int(RowFlag.CACHED)) != 0).sum())
    assert ran.counts["rows"] == len(flags) - cached and ran.counts["cached_rows"] == cached
    for lost in ("uncertain_rows", "dropped_rows", "raw_dropped_rows", "tap_faults", "faults", "deaths"):
        assert ran.counts[lost] == 0, lost


def check_tokens(ran: Ran) -> None:
    """Greedy answers are those of the reference."""
    for key, text in ran.texts.items():
        if key[0] in ran.greedy:
            logits = truth(ran.model, text.ids)[1][len(text.prompt) - 1 : -1]
            chosen = logits[np.arange(len(text.answer)), list(text.answer)]
            assert (logits.max(axis=1) - chosen <= 1e-4 * np.abs(logits).max()).all(), key


def expected_scores(probe: Probe, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores, z) of rows [n, d]."""
    z = rows.astype(np.float32) @ probe.weight + np.float32(probe.info.bias)
    return activate(z, probe.info.activation, probe.info.jump), z


def check_scores(ran: Ran, probes: Sequence[Probe], tolerance: float = SCORE_TOLERANCE) -> int:
    """Every score of every row that stands for a token of the text; how many were compared."""
    compared = 0
    for key, text in ran.texts.items():
        seen = ran.seen[key]
        rows, _ = truth(ran.model, text.ids)
        kept, scores = seen.rows[seen.kept], seen.scores[seen.kept]
        for probe in probes:
            right, z = expected_scores(probe, rows[probe.info.site][kept["position"]])
            found = scores[:, ran.columns[probe.id]]
            slack = tolerance * max(1.0, float(np.abs(z).max()))
            close = np.abs(found - right) <= slack
            if probe.info.activation == "jumprelu":
                close |= (np.abs(z - probe.info.jump) <= slack) & ((found == 0) | (np.abs(found - z) <= slack))
            assert close.all(), f"{key} {probe.id}: {found[~close][:4]} instead of {right[~close][:4]}"
            compared += len(found)
    return compared


def check_recording(ran: Ran, tolerance: float = ROW_TOLERANCE) -> int:
    """Every recorded row of every site, whatever its flags but for drafts in vain; how many were compared.

    Rows that were computed are all recorded: those of the ring without the cached ones.
    """
    assert ran.recording is not None
    compared = 0
    for site in ran.recording.sites:
        rows = ran.recording.rows(site)
        for number, request in enumerate(ran.recording.requests):
            mine = rows.labels["request"] == number
            compared += _check_rows(ran, _key(request), site, rows.values[mine], rows.labels[mine], tolerance)
    return compared


def _key(request: str) -> tuple[str, int]:
    head, _, rest = request.partition("_")
    return (rest, int(head)) if head.isdigit() else (request, 0)


def _check_rows(
    ran: Ran, key: tuple[str, int], site: str, values: np.ndarray, labels: np.ndarray, tolerance: float
) -> int:
    text, seen = ran.texts.get(key), ran.seen[key]
    spurious = (labels["flags"] & int(RowFlag.REJECTED | RowFlag.AFTER_EOS)) != 0
    computed = seen.rows[~seen.having(RowFlag.CACHED)]
    assert labels["position"].tolist() == computed["position"].tolist(), key
    assert labels["token_id"].tolist() == computed["token_id"].tolist(), key
    if text is None:  # it was aborted before its first token: its prompt is all there is
        return 0
    right = truth(ran.model, text.ids)[0][site][labels["position"][~spurious]]
    worst = np.abs(values[~spurious] - right).max(axis=1) / np.abs(right).max(axis=1)
    assert (worst <= tolerance).all(), f"{key} {site}: {worst.max():.2g} at row {int(worst.argmax())}"
    return len(right)
