"""`actscope bench capture`: a model's speed while its layers are captured, relative to the bare model.

A random GPT-2 of 124 M parameters generates greedily from a batch of prompts. Every method of capturing is measured in
pairs with the bare model, one right after the other; the result is the median of the pairs' ratios. Our captures go to disk,
and a sample ends when all its rows are encoded and in the file. Peers only keep rows in memory. Opening and closing the
recording, once for many generations, is not counted.

Peers that are not installed are listed as absent, without a figure.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actscope.bench.support.samples import Result

if TYPE_CHECKING:
    import torch

Progress = Callable[[str], None]
#: Runs the workload once and returns the number of captured rows.
Run = Callable[[], int]

LANES, PROMPT, NEW = 2, 48, 16
LAYERS = {"hf_3_layers": (0, 6, 11), "hf_all_layers": tuple(range(12))}
BARS = {"hf_3_layers": 0.97, "hf_all_layers": 0.90}
MIN_PAIRS = 3
FIRST_PASSES = 5
#: Seconds that peers with packages of their own take to import and to run. A shorter run omits them.
PEERS_NEED_S = 10.0
_TOKENS = LANES * (PROMPT + NEW - 1)
_ASK = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


@functools.cache
def model_and_ids() -> tuple[Any, torch.Tensor]:
    """Return the model and its prompts, created once per process."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=None)
    model: Any = GPT2LMHeadModel(config)
    model.train(False).requires_grad_(False)
    return model, torch.randint(1, config.vocab_size, (LANES, PROMPT))


def same_model() -> Any:
    """Return a copy of the model's modules that shares its weights, so that hooks do not affect other copies."""
    model, _ = model_and_ids()
    return copy.deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())})


def generate(model: Any, *, hidden_states: bool = False) -> Any:
    return model.generate(
        model_and_ids()[1], **_ASK, output_hidden_states=hidden_states, return_dict_in_generate=hidden_states
    )


# --- ways of capturing ----------------------------------------------------------------------------------------------------


@contextmanager
def _actscope(layers: tuple[int, ...]) -> Iterator[Run]:
    """Capture with the default preset to a recording in the system's temporary directory."""
    from actscope.capture.session import capture

    model = same_model()
    with (
        tempfile.TemporaryDirectory(prefix="actscope-bench-") as directory,
        capture(model, sites=",".join(map(str, layers)), to=Path(directory) / "run.acts") as cap,
    ):

        def run() -> int:
            before = cap.stats().rows
            generate(model)
            cap.flush()
            return cap.stats().rows - before

        yield run


@contextmanager
def _output_hidden_states(layers: tuple[int, ...]) -> Iterator[Run]:
    """Capture with transformers itself. It keeps the states of all layers; only the requested ones are counted."""
    model = same_model()

    def run() -> int:
        out = generate(model, hidden_states=True)
        return _count(step[layer + 1] for step in out.hidden_states for layer in layers)

    yield run


@contextmanager
def _nnsight(layers: tuple[int, ...]) -> Iterator[Run]:
    LanguageModel = import_module("nnsight").LanguageModel

    _, ids = model_and_ids()
    with _quiet(), _peer_tokenizer() as tokenizer:
        watched = LanguageModel(same_model(), tokenizer=tokenizer)

        def run() -> int:
            with watched.generate(ids, **_ASK) as tracer:
                saved = cast(Any, list()).save()  # nnsight adds `save` to objects made in its trace
                with tracer.iter[:]:
                    for layer in layers:
                        saved.append(watched.transformer.h[layer].output)
            return _count(saved)

        yield run


@contextmanager
def _transformer_lens(layers: tuple[int, ...]) -> Iterator[Run]:
    TransformerBridge = import_module("transformer_lens.model_bridge").TransformerBridge

    _, ids = model_and_ids()
    with _quiet(), _peer_tokenizer() as tokenizer:
        bridge = TransformerBridge.boot_transformers("gpt2", hf_model=same_model(), tokenizer=tokenizer, device="cpu")
        saved: list[torch.Tensor] = []
        hooks = [(f"blocks.{layer}.hook_out", lambda rows, hook: saved.append(rows.clone())) for layer in layers]

        def run() -> int:
            saved.clear()
            with bridge.hooks(fwd_hooks=hooks):
                bridge.generate(
                    ids, max_new_tokens=NEW, do_sample=False, verbose=False, stop_at_eos=False, return_type="tokens"
                )
            return _count(saved)

        yield run


def _count(states: Iterable[torch.Tensor]) -> int:
    """Return the number of rows of [lanes, columns, d] tensors."""
    return sum(int(one.shape[0] * one.shape[1]) for one in states)


@contextmanager
def _peer_tokenizer() -> Iterator[Any]:
    """Provide a tokenizer of 257 byte tokens, loaded from files. Peers require one although they get token ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, merges=[]))
    with tempfile.TemporaryDirectory(prefix="actscope-bench-") as directory:
        made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
        )
        made.save_pretrained(directory)
        yield AutoTokenizer.from_pretrained(directory)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


#: Peers, and the package that each needs.
PEERS = {
    "output_hidden_states": (_output_hidden_states, "transformers"),
    "nnsight": (_nnsight, "nnsight"),
    "transformer_lens": (_transformer_lens, "transformer-lens"),
}


# --- measuring --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """A method of capturing some layers, with its measured pairs. `absent` has the reason if there are none."""

    name: str
    layers: tuple[int, ...]
    open: Callable[[tuple[int, ...]], AbstractContextManager[Run]]
    package: str
    ratios: list[float] = field(default_factory=list)
    cpu_ratios: list[float] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        return self.name in LAYERS


def run(seconds: float = 60.0, progress: Progress | None = None) -> list[Result]:
    """Run the benchmark in about `seconds`, with at least three pairs of each method.

    `progress` is called with the current measurement.
    """
    say = progress or (lambda _: None)
    ways = [Way(name, layers, _actscope, "actscope") for name, layers in LAYERS.items()]
    ways += [
        Way(f"{n}_{peer}", layers, do, package) for peer, (do, package) in PEERS.items() for n, layers in LAYERS.items()
    ]
    generate(model_and_ids()[0])
    with ExitStack() as stack:
        runs = [(way, one) for way in _affordable(ways, seconds) if (one := _try(way, stack, say)) is not None]
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(runs[-1][0].ratios) < MIN_PAIRS:
            for way, one in runs:
                say(f"{way.name}, pair {len(way.ratios) + 1}")
                wall, cpu = _pair(one, bare_first=len(way.ratios) % 2 == 0)
                way.ratios.append(wall)
                way.cpu_ratios.append(cpu)
    say("the first pass, with its truth check")
    found = [_result(way, ways) for way in ways] + [_cpu_result(way) for way in ways if way.ratios]
    return [*found, _first_pass_result([_first_pass_ratio() for _ in range(FIRST_PASSES)])]


def _affordable(ways: list[Way], seconds: float) -> list[Way]:
    """Return the methods to measure. A short run omits peers with packages of their own, which are marked absent."""
    left_out = [way for way in ways if seconds < PEERS_NEED_S and way.package not in ("actscope", "transformers")]
    for way in left_out:
        way.absent.append("this run is too short for it")
    return [way for way in ways if way not in left_out]


def _try(way: Way, stack: ExitStack, say: Progress) -> Run | None:
    """Open a method and run it once. A peer that is not installed or fails is marked absent; our own must work."""
    say(f"{way.name}: trying it")
    wanted = _TOKENS * len(way.layers)
    try:
        one = stack.enter_context(way.open(way.layers))
        captured = one()
    except Exception as error:  # a peer may fail in any way with these versions
        if way.ours:
            raise
        missing = isinstance(error, ModuleNotFoundError)
        way.absent.append(f"{way.package} is not installed" if missing else f"{type(error).__name__}: {error}"[:200])
    else:
        if captured >= wanted:
            return one
        way.absent.append(f"it gave {captured} rows of {wanted}")
    if way.ours:
        raise RuntimeError(f"bench capture: {way.name}: {way.absent[0]}: run the tests of actscope.capture")
    say(f"{way.name} is left out: {way.absent[0]}")
    return None


def _pair(one: Run, *, bare_first: bool) -> tuple[float, float]:
    """Return the ratio of tokens per second with capture to bare, by wall time and by the CPU time of all threads."""
    model, _ = model_and_ids()
    if bare_first:
        bare, captured = _seconds(lambda: generate(model)), _seconds(one)
    else:
        captured, bare = _seconds(one), _seconds(lambda: generate(model))
    return bare[0] / captured[0], bare[1] / captured[1]


def _seconds(do: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - wall, time.process_time() - cpu


def _first_pass_ratio() -> float:
    """Return the seconds of a capture's first pass, in which its sites are checked, divided by those of its second."""
    _, ids = model_and_ids()
    with _actscope_of_one_pass() as once:
        return _seconds(lambda: once(ids))[0] / _seconds(lambda: once(ids))[0]


@contextmanager
def _actscope_of_one_pass() -> Iterator[Callable[[torch.Tensor], object]]:
    """Capture all layers of a model that no capture has checked yet. Each call is one pass."""
    from actscope.capture.session import capture

    model = same_model()
    sites = ",".join(map(str, LAYERS["hf_all_layers"]))
    with (
        tempfile.TemporaryDirectory(prefix="actscope-bench-") as directory,
        capture(model, sites=sites, to=Path(directory) / "run.acts"),
    ):
        yield lambda ids: model(input_ids=ids)


def _first_pass_result(ratios: list[float]) -> Result:
    return {
        "name": "hf_first_pass",
        "value": statistics.median(ratios),
        "unit": "x",
        "baseline": f"the second pass of the same capture, {LANES} x {PROMPT} tokens, all layers",
        "runs": len(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "bar": None,
        "ok": True,
    }


def _result(way: Way, ways: list[Way]) -> Result:
    found: Result = {
        "name": way.name,
        "value": statistics.median(way.ratios) if way.ratios else None,
        "unit": "x",
        "baseline": f"the bare model, paired; {way.package}" if way.ratios else f"absent: {way.absent[0]}",
        "runs": len(way.ratios),
        "min": min(way.ratios, default=None),
        "max": max(way.ratios, default=None),
        "bar": BARS.get(way.name),
        "ok": True,
    }
    if way.ours:
        peers = [w for w in ways if w.name.startswith(f"{way.name}_") and w.ratios]
        found["ahead"] = {
            w.name.removeprefix(f"{way.name}_"): found["value"] > statistics.median(w.ratios) for w in peers
        }
        found["ok"] = found["value"] >= found["bar"]
    return found


def _cpu_result(way: Way) -> Result:
    """Make the result by CPU time, for machines with other load. It has no bar."""
    return {
        "name": f"{way.name}_cpu_time",
        "value": statistics.median(way.cpu_ratios),
        "unit": "x",
        "baseline": "CPU time of the bare model, paired",
        "runs": len(way.cpu_ratios),
        "min": min(way.cpu_ratios),
        "max": max(way.cpu_ratios),
        "bar": None,
        "ok": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m actscope.bench.capture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.seconds, lambda what: print(what, file=sys.stderr)), indent=1))


if __name__ == "__main__":
    main()
