"""`actscope bench models`: every architecture of transformers, as a tiny random model, with its rows held against plain hooks.

Each architecture is built in a forked child and run in four ways (`cases`). Its rows of all points, taken through
`actscope.capture`, are compared with what plain hooks, the model's own norm and the sum of a block's parts say (`reference`,
`checks`). The verdict is one of

    right     all that is delivered is right, and resid_post is delivered; points that are refused are listed
    refused   the product gives no resid_post, and says why
    wrong     a row, a label or the generated text differs, or rows are missing without a word
    cannot    the model cannot be built or run, without any capture, or has no reference to compare with
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from actscope.bench.support.samples import Progress, Result
from actscope.errors import SettingsError

if TYPE_CHECKING:
    from actscope.bench.models.architectures import Architecture
    from actscope.bench.models.verdicts import MatrixEntry

ENGINES = ("hf", "vllm")
#: Limits of one architecture, by engine: CPU seconds, and memory.
CPU_SECONDS = {"transformers": 60.0, "vllm": 180.0}
MEMORY_BYTES = {"transformers": 8 << 30, "vllm": 32 << 30}
#: Fewest right architectures of a whole run, by name of the count.
BARS = {"transformers_right": 150, "vllm_right": 45}

#: An entry of the matrix, as JSON (`verdicts.MatrixEntry`).
EntryJson = Mapping[str, object]


class Matrix(list[Result]):
    """The counts of a run as results of a bench, with the entries of all architectures."""

    def __init__(self, results: Iterable[Result], entries: Sequence[EntryJson]) -> None:
        super().__init__(results)
        self.entries = list(entries)


def run(seconds: float = 0.0, progress: Progress | None = None, *, engine: str = "hf", only: str = "") -> Matrix:
    """Examine the architectures and return the counts as results.

    Args:
        seconds: Ignored: the matrix takes as long as it takes.
        progress: Called with the current architecture.
        engine: "hf" or "vllm".
        only: Model types or globs, separated by commas, such as "llama,qwen*"; "" for all.

    Raises:
        SettingsError: The engine is unknown, or no architecture has this name.
    """
    if engine not in ENGINES:
        raise SettingsError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")
    say = progress or (lambda _: None)
    entries = list(examine_all(say, only) if engine == "hf" else examine_all_vllm(say, only))
    return results(entries, "transformers" if engine == "hf" else "vllm", whole=not only)


def more(results: Sequence[Result]) -> dict[str, object]:
    """Return what a report has besides its results: the counts by name, and the entries of all architectures."""
    counts = {result["name"]: result["value"] for result in results}
    return {**counts, "architectures": results.entries if isinstance(results, Matrix) else []}


def table(results: Sequence[Result]) -> str:
    """Format the architectures that are not right, each with its reason."""
    entries = results.entries if isinstance(results, Matrix) else []
    lines = [
        f"{entry['name']:<26} {entry['verdict']:<8} {entry['reason']}"
        for entry in entries
        if entry["verdict"] != "right"
    ]
    return "\n".join(lines)


def examine_all(progress: Progress, only: str = "") -> Iterator[EntryJson]:
    """Examine the architectures of transformers, one after the other, with a line on stderr for each."""
    warm_up()
    from actscope.bench.models.architectures import architectures
    from actscope.bench.models.examine import examine

    for architecture in _announced(architectures(only), only, progress):
        yield _told(_examined(architecture, "transformers", functools.partial(_json, examine, architecture)))


def examine_all_vllm(progress: Progress, only: str = "") -> Iterator[EntryJson]:
    """Examine the decoders and multimodal architectures with vLLM. If the plugin refuses all sites, fewer are tried."""
    from actscope.bench.support.vllm_engines import require_vllm

    require_vllm()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from actscope.bench.models.vllm_engine import SELECTIONS, offer_torchvision

    offer_torchvision()
    warm_up()
    import vllm  # noqa: F401

    from actscope.bench.models.architectures import architectures
    from actscope.bench.models.vllm import examine_vllm

    chosen = [one for one in architectures(only) if one.kind != "encoder-decoder"]
    for architecture in _announced(chosen, only, progress):
        tries = (
            _examined(architecture, "vllm", functools.partial(_json, examine_vllm, architecture, sites))
            for sites in SELECTIONS
        )
        yield _told(first_taken(tries))


def first_taken(tries: Iterable[EntryJson]) -> EntryJson:
    """Return the first entry that is not refused, else the last. Reasons of refusals before it are kept as a case."""
    refused: dict[str, None] = {}
    entry: EntryJson = {}
    for entry in tries:
        if entry["verdict"] != "refused":
            break
        refused[str(entry["reason"])] = None
    if refused and entry["verdict"] != "refused":
        return {**entry, "cases": {**entry["cases"], "all sites": f"refused: {'; '.join(refused)}"}}  # type: ignore[dict-item]
    return entry


def _json(work: Callable[..., MatrixEntry], *arguments: object) -> EntryJson:
    return work(*arguments).to_json()


def _announced(chosen: Sequence[Architecture], only: str, progress: Progress) -> Iterator[Architecture]:
    """Iterate with progress. Raises SettingsError if nothing was chosen."""
    if not chosen:
        raise SettingsError(
            f"no architecture of transformers is called {only!r}: give model types or globs such as llama,qwen*"
        )
    for number, architecture in enumerate(chosen, 1):
        progress(f"{architecture.name}, {number} of {len(chosen)}")
        yield architecture


def _told(entry: EntryJson) -> EntryJson:
    """Print one line of an entry to stderr, and return the entry."""
    reason = f": {entry['reason']}" if entry["reason"] else ""
    print(f"{entry['name']}: {entry['verdict']}{reason}"[:300], file=sys.stderr, flush=True)
    return entry


def warm_up() -> None:
    """Import torch and what all models of transformers import, on one thread and without warnings.

    Forked children have it at once: without, each spent 3 s of CPU time on imports, and 0.5 s on its model.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import torch
    import torch._dynamo
    import transformers.generation.utils
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama

    import actscope.bench.models.examine  # noqa: F401

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a child would copy all pages


def _examined(architecture: Architecture, engine: str, work: Callable[[], EntryJson]) -> EntryJson:
    """Examine one architecture in a child."""
    from actscope.bench.models.isolated import ChildFailed, run_isolated
    from actscope.bench.models.verdicts import MatrixEntry

    begun = time.perf_counter()
    try:
        found = run_isolated(work, cpu_seconds=CPU_SECONDS[engine], memory_bytes=MEMORY_BYTES[engine])
    except ChildFailed as why:
        spent = round(time.perf_counter() - begun, 2)
        return MatrixEntry(
            architecture.name, architecture.kind, engine, reason=f"not examined: {why}", seconds=spent
        ).to_json()
    assert isinstance(found, dict)
    return found


def results(entries: Sequence[EntryJson], engine: str, *, whole: bool) -> Matrix:
    """Return the counts of an engine as results of a bench; a whole run has a bar for what is right. None may be wrong."""
    made = []
    for verdict in ("right", "refused", "wrong", "cannot"):
        name = f"{engine}_{verdict}"
        count = sum(entry["verdict"] == verdict for entry in entries)
        bar = 0 if verdict == "wrong" else BARS.get(name) if whole else None
        ok = bar is None or (count <= bar if verdict == "wrong" else count >= bar)
        made.append(
            {
                "name": name, "value": count, "unit": "models", "baseline": f"of {len(entries)} architectures", "runs": 1,
                "min": count, "max": count, "bar": bar, "ok": ok,
            }
        )  # fmt: skip
    return Matrix(made, entries)
