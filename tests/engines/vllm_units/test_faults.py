"""Dropped passes, hostile request ids, unreadable options and resumed sessions leave other requests' rows as they are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines.vllm_units.test_publishing import WideSink

from actscope.engines.vllm import plugin
from actscope.engines.vllm.publishing.device_copy import HostPass
from actscope.engines.vllm.publishing.labels import Register, RequestState, known_of
from actscope.engines.vllm.publishing.publisher import PassNote, Publisher
from actscope.engines.vllm.row_requests import RowRequests
from actscope.engines.vllm.session import StagePlacement
from actscope.engines.vllm.settings import KEY, VllmSettings
from actscope.engines.vllm.sidecar_protocol import options_of
from actscope.frames import ListSink, RowFlag, SpanFlag
from actscope.ring.layout import MAX_REQUEST_ID, request_bytes
from actscope.ring.request_ids import ring_id
from actscope.taps import tap
from actscope.taps.tap import TapBuffers


def _publisher() -> tuple[Publisher, ListSink]:
    ring = ListSink()
    buffers = TapBuffers(n_sites=1, kept=[], d=2, width=1, max_rows=8, dtype=torch.float32, device=torch.device("cpu"))
    return Publisher(ring, None, None, ["layers.0.resid_post"], [], buffers), ring  # type: ignore[arg-type]  # writes alike


def _landed(n: int, first: int, fired: int) -> HostPass:
    return HostPass(
        np.zeros((n, 1), np.float32), None, np.arange(first, first + n), np.zeros(n, np.int32), None, np.array([fired])
    )


def _note(first: int, n: int, begun: tuple[RequestState, ...] = ()) -> PassNote:
    return PassNote(["a"], np.array([0, n]), begun, (), 0, {0: [0]}, np.zeros(1, np.int64), n_rows=n)


def test_the_pass_after_a_dropped_one_is_delivered() -> None:
    """A dropped pass loses its own scores and not those of the next pass."""
    publisher, ring = _publisher()
    publisher.publish(_note(0, 2, (RequestState("a", 8),)), _landed(2, 0, fired=1))
    publisher.publish(_note(2, 2), None)
    publisher.publish(_note(4, 2), _landed(2, 4, fired=3))
    assert not np.isnan(ring.steps[-1][1][0].rows).any()
    assert publisher.counts.tap_faults == 0


def _new(request: str, prompt: int = 4, computed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        req_id=request, prompt_len=prompt, sampling_params=None, block_ids=None, prompt_embeds=None,
        prompt_token_ids=list(range(prompt)), num_computed_tokens=computed,
    )  # fmt: skip


@pytest.mark.parametrize("long", ["a" * 112, "a" * 300, "\udc80"])
def test_an_id_too_long_for_a_ring_has_its_rows_under_a_shorter_name(long: str) -> None:
    """All rows of its pass are labeled, and all spans can be written, those of its end too."""
    register, request = Register(), f"chatcmpl-{long}-01234567"
    for one in (request, "b"):
        register.add(known_of(_new(one), None, rows=False, has_options=False))
    positions = np.array([0, 1, 0, 1])
    labels = register.label([request, "b"], np.array([0, 2, 4]), positions, np.zeros(4, np.int32), 1)
    assert labels.uncertain == 0
    spans = [*labels.spans, *register.end([request, "b"])]
    assert sorted(span.request for span in spans) == sorted([ring_id(request), "b"] * 2)
    for span in spans:
        assert len(request_bytes(span.request)) <= MAX_REQUEST_ID


def test_a_session_that_goes_on_after_its_answer_is_not_after_its_end() -> None:
    """With streaming input the prompt grows, so a stop token that was computed in advance does not end the session."""
    register = Register()
    first = _new("a", 2)
    register.add(known_of(first, None, rows=False, has_options=False))
    register.get("a").stop_ids = frozenset([9])  # type: ignore[union-attr]
    tokens = np.array([1, 2, 3, 9], np.int32)
    meta = register.label(["a"], np.array([0, 4]), np.arange(4), tokens, 1).meta
    assert meta["flags"][3] & RowFlag.AFTER_EOS
    register.add(known_of(_new("a", 6, computed=3), None, rows=False, has_options=False))
    meta = register.label(["a"], np.array([0, 3]), np.arange(3, 6), np.array([4, 5, 6], np.int32), 2).meta
    assert meta["flags"].tolist() == [int(RowFlag.PREFILL)] * 3


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, '"\ud800"'])
def test_options_that_cannot_be_understood_ask_for_nothing(text: str) -> None:
    """Whatever a client writes there, no request fails of it."""
    assert options_of({"actscope": text}) == {}


@pytest.mark.parametrize("device", ["xpu:0", "hpu", "mps"])
def test_on_a_device_that_taps_cannot_read_vllm_runs_unwatched(device: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is attached, nothing is raised, and one line says why. The worker is a stand-in: there is no such device here."""
    config = SimpleNamespace(additional_config={KEY: {}})
    worker = SimpleNamespace(
        vllm_config=config, model_runner=SimpleNamespace(device=device, get_model=lambda: pytest.fail("it was touched"))
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plugin, "_version", lambda: "0.32.0")
        patched.setattr(plugin, "place_of", lambda worker: StagePlacement(True, "g"))
        plugin.watch(worker)
    assert getattr(worker, "_actscope_session", None) is None
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1 and torch.device(device).type in said[0] and "cpu and cuda" in said[0]


@pytest.mark.parametrize("key", ["XPU", "HPU", "MPS", "PrivateUse1"])
def test_the_taps_do_nothing_on_other_devices_instead_of_raising(key: str) -> None:
    """A model may have parts on another device than its runner; the forward goes on, and what was not read is not delivered."""
    for op in ("actscope::tap", "actscope::encode"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, key)
    before = np.ones(1)
    tap._no_kernel(torch.zeros(1, device="meta"), None, before)
    assert before.tolist() == [1]


def test_what_the_recorder_is_told_of_a_request_without_its_first_rows() -> None:
    """Rows of a first pass that was dropped are lost, unlike a prompt that was cached: the recorder can tell the two apart."""
    rows_ring = WideSink()
    buffers = TapBuffers(n_sites=1, kept=[0], d=2, width=1, max_rows=8, dtype=torch.float32, device=torch.device("cpu"))
    publisher = Publisher(ListSink(), rows_ring, None, ["layers.0.resid_post"], [0], buffers)  # type: ignore[arg-type]
    publisher.publish(_note(0, 2, (RequestState("a", 8, wants_rows=True),)), None)
    for i, name in enumerate(("a", "b")):
        begun = () if name == "a" else (RequestState("b", 8, wants_rows=True, computed=2),)
        note = PassNote([name], np.array([0, 2]), begun, (), 0, {0: [0]}, np.zeros(1, np.int64), n_rows=2)
        landed = _landed(2, 2, fired=2 + i)
        landed.rows = np.zeros((2, 2), np.float32)
        publisher.publish(note, landed)
    first = {span.request: bool(span.flags & SpanFlag.FIRST) for step, _ in rows_ring.steps for span in step.spans}
    assert first == {"a": False, "b": True} and publisher.counts.raw_dropped_rows == 2


def test_an_id_too_long_for_a_ring_has_one_name_for_the_sidecar() -> None:
    """It is what the rows have: the request runs, is marked, is settled and ends under it."""
    requests, long = (
        RowRequests(VllmSettings(record="run", rows="all"), rows_kept=True),
        f"chatcmpl-{'a' * 300}-01234567",
    )
    asked = SimpleNamespace(extra_args={"actscope": {"keep": "for the test"}})
    options = requests.begin(SimpleNamespace(req_id=long, sampling_params=asked, lora_request=None))
    assert options is not None and options.request == ring_id(long)
    assert requests.has_options(long) and requests.wants_rows(long)
    assert (requests.running(), requests.wishes()) == ([ring_id(long)], [options])
    requests.mark(ring_id(long), "by hand", "its name")
    assert [one.name for one in requests.wishes()] == ["its name"]
    requests.forget([long])
    assert (requests.running(), requests.unsettled) == ([], 1)
    requests.settle([ring_id(long)])
    assert not requests.wishes() and not requests.unsettled
