"""Rows of many models, read by vLLM and by plain hooks of transformers: one warm process, and a forked child for each model.

    python -m support.vllm.rows_of DIRECTORY '{"llama": {"sites": "all", "arguments": {"enforce_eager": true}}}'

prints one line of JSON for each model: `refused` has the sites that are refused and why, `off` the largest difference of each
other site from its reference, as a share of the reference's largest number, and `error` what went wrong instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPTS = (tuple(range(7, 40)), (5, 900, 17, 3, 250, 4, 11))
ANSWER = 3
#: Seconds for one model.
SECONDS = 300


def read(path: Path, sites: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of every position of the prompts and answers, float32 [n, d], by site; texts; the sites that are refused, and why."""
    from vllm import LLM, SamplingParams

    from actscope.engines.vllm import session
    from actscope.engines.vllm.sidecar_client import NoSidecar

    vars(session)["Sidecar"] = lambda *args, **kwargs: NoSidecar()  # a process less for each model
    config = {"actscope": {"sites": sites, "row_sites": sites, "width": 1, "buffer_gb": 8}}
    llm = LLM(
        str(path), dtype="float32", max_model_len=128, max_num_seqs=4, max_num_batched_tokens=128, block_size=32,
        kv_cache_memory_bytes=64 << 20, skip_tokenizer_init=True, additional_config=config, disable_log_stats=True, **arguments,
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in PROMPTS], sampling, use_tqdm=False)
    texts = [(*ids, *out.outputs[0].token_ids[:-1]) for ids, out in zip(PROMPTS, outputs, strict=True)]
    start = next((start for start in llm.collective_rpc(start_of) if start is not None), None)
    if start is None:
        return {"refused": {"all": "not watched, see the log"}, "rows": {}, "texts": texts}
    rows = rows_of_ring(start, [out.request_id for out in outputs], texts)
    return {"refused": start.refused, "rows": rows, "texts": texts}


def start_of(worker: Any) -> Any:
    """In a worker: the rings of its session, if it publishes."""
    session = getattr(worker.worker, "_actscope_session", None)
    return None if session is None else session.start


def rows_of_ring(start: Any, requests: Sequence[str], texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """What is in the ring of rows: float32 [n, d] by site, the texts after each other; NaN where there is no row."""
    from actscope.engines.vllm.sidecar_protocol import external_id, row_layout
    from actscope.extraction.vllm.row_collector import WideRowLayout
    from actscope.ring.host import RingReader
    from actscope.ring.segment import unlink

    reader = RingReader.attach(start.rows_ring, from_oldest=True)
    for ring in (start.rows_ring, start.ring):
        unlink(ring)  # this process is about to be killed
    layout = WideRowLayout(
        row_layout(start.columns, reader.spec.dtype), tuple(start.kept), start.facts.d_model, torch.float32
    )
    n = [len(text) for text in texts]
    found = {site: np.full((sum(n), start.facts.d_model), np.nan, np.float32) for site in start.kept}
    while (batch := reader.read()) is not None:
        for step in batch.steps:
            if not len(step.meta):
                continue
            at = np.array([requests.index(external_id(span.request)) for span in step.spans])[
                step.meta["span"].astype(int)
            ]
            index = np.concatenate([[0], np.cumsum(n)])[at] + step.meta["position"]
            for site, values in layout.parts(step.rows).items():
                found[site][index] = values.float().numpy()
    reader.close()
    return found


@torch.inference_mode()
def reference(
    path: Path, texts: Sequence[Sequence[int]], attn_out: str, mlp_out: str, factor: float
) -> dict[str, np.ndarray]:
    """The right rows: inputs and outputs of blocks, what they add, and the output of the final norm."""
    from support.vllm import reference as plain

    model = plain.load(path)
    kept: dict[str, list[torch.Tensor]] = {}

    def keep(site: str, value: Any, times: float = 1.0) -> None:
        kept.setdefault(site, []).append((value[0] if isinstance(value, tuple) else value)[0] * times)

    hooks = []
    for i, block in enumerate(plain.blocks(model)):
        hooks.append(
            block.register_forward_pre_hook(
                lambda _, args, kwargs, i=i: keep(f"layers.{i}.resid_pre", args or (kwargs["hidden_states"],)),
                with_kwargs=True,
            )
        )
        hooks.append(block.register_forward_hook(lambda _, args, out, i=i: keep(f"layers.{i}.resid_post", out)))
        for point, name in (("attn_out", attn_out), ("mlp_out", mlp_out)):
            modules = dict(block.named_modules())
            if name in modules and name:
                hooks.append(
                    modules[name].register_forward_hook(
                        lambda _, args, out, s=f"layers.{i}.{point}": keep(s, out, factor)
                    )
                )
    norm = next(
        m for name, m in model.base_model.named_modules()
        if name.rpartition(".")[2] in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "embedding_norm")
        and not name.rpartition(".")[0].rpartition(".")[2].isdigit() and ".layers." not in f".{name}" and ".h." not in f".{name}"
    )  # fmt: skip
    hooks.append(norm.register_forward_hook(lambda _, args, out: keep("final_norm", out)))
    for text in texts:
        model(torch.tensor([list(text)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = {site: torch.cat(values).reshape(sum(map(len, texts)), -1).numpy() for site, values in kept.items()}
    found["embed"] = found["layers.0.resid_pre"]
    return found


def compare(name: str, directory: Path, sites: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One model: what is refused, how far the other sites are off, and how far the parts of each block are off its change."""
    from support.vllm.families import FAMILIES, make_family

    path, family = make_family(name, directory), FAMILIES[name]
    ask = in_a_child(partial(reference, path, attn_out=family.attn_out, mlp_out=family.mlp_out, factor=family.factor))
    ours = read(path, sites, arguments)
    right = ask(ours["texts"])
    off = {site: off_by(rows, right[site]) for site, rows in ours["rows"].items() if site in right}
    sums = {}
    for i in range(64):
        at = {
            point: ours["rows"].get(f"layers.{i}.{point}")
            for point in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        }
        if all(rows is not None for rows in at.values()):
            sums[i] = off_by(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
    unknown = [site for site in ours["rows"] if site not in right]
    return {"refused": ours["refused"], "off": off, "sums": sums, "unknown": unknown}


def in_a_child(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function`, to be called once, in a child of now: vLLM's Transformers backend changes transformers' classes."""
    ours, theirs = Pipe()
    if not os.fork():
        ours.close()
        try:
            theirs.send(function(theirs.recv()))
        except EOFError:
            pass  # the process that would have asked has failed
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()

    def call(argument: Any) -> Any:
        ours.send(argument)
        return ours.recv()

    return call


def start_reader(name: str, directory: Path, sites: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Start what harvests and feeds read with."""
    from support.vllm.families import make_family

    from actscope.extraction.vllm.reader import VllmReader

    VllmReader(
        str(make_family(name, directory)), sites, batch_tokens=64, context=64, model_dtype="float32", **arguments
    )
    return {}


def off_by(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference as a share of the largest number; infinite where a row is missing."""
    worst = float(np.abs(found - right).max() / np.abs(right).max())
    return worst if worst == worst else float("inf")


def warm_up() -> None:
    """Import everything that a child needs, and let it look at a model's class itself: vLLM starts a process for that."""
    import transformers
    import vllm.model_executor.models.registry as registry
    from vllm import LLM  # noqa: F401
    from vllm.plugins import load_general_plugins
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: F401
    from vllm.v1.worker import cpu_worker  # noqa: F401

    registry._run_in_subprocess = lambda function: function()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    load_general_plugins()


def forked(name: str, directory: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """`compare` in a child of this process."""
    out, into = os.pipe()
    log = directory / f"{name}.log"
    child = os.fork()
    if not child:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(job.get("environment", {}))
        try:
            examine = start_reader if job.get("reader") else compare
            answer = examine(job.get("model", name), directory, job["sites"], job.get("arguments", {}))
        except BaseException as error:  # the child's own boundary: the parent reports it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(into, json.dumps(answer).encode())
        os._exit(0)
    os.close(into)
    began = time.monotonic()
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(SECONDS)
    with os.fdopen(out, "rb") as pipe:
        data = pipe.read()
    signal.alarm(0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(data) if data else {"error": f"the child died, see {log}"}
    return {"name": name, "seconds": round(time.monotonic() - began, 1), **found}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warm_up()
    for one, asked in json.loads(sys.argv[2]).items():
        answers.write(json.dumps(forked(one, Path(sys.argv[1]), asked)) + "\n")
