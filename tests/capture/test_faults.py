"""Nothing of ours breaks the user's model: exceptions, interrupts, threads, broken sinks."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, prompts
from support.recordings.made import step_of

import actscope
from actscope.capture.device_copy import DeviceCopy, Handover
from actscope.errors import RecordingError, RecordingPoisoned, SettingsError, SiteError
from actscope.frames import RowSink, Step

IDS = torch.tensor(prompts(8))


@pytest.fixture
def model() -> Any:
    return model_of("llama")


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class LeastRecorder(RowSink):
    """Defines only what a recorder must."""

    def __init__(self) -> None:
        self.rows = 0

    def begin(self, step: Step) -> None:
        self.rows += step.n_rows

    def put(self, step: Step, site: str, rows: torch.Tensor) -> None:
        assert len(rows) == step.n_rows

    def end(self, step: Step, complete: bool = True) -> None:
        assert complete

    def close(self) -> None:
        self.rows = -self.rows


def test_a_recorder_may_define_four_methods_and_inherit_the_rest(model: Any) -> None:
    least = LeastRecorder()
    with actscope.capture(model, sites="all", recorder=least) as cap, torch.no_grad():
        model(IDS)
        cap.mark("r000001")
        cap.record_token(5, request="r000001")
        assert (cap.flush(), cap.checkpoint(), cap.known_requests) == (0, 0, frozenset())
    assert least.rows == -IDS.numel()
    assert cap.stats().recorder is None
    assert cap.progress.stored_bytes == 0


def test_a_recorder_that_lacks_a_member_is_refused_before_the_model_runs(model: Any) -> None:
    class Partial:
        def begin(self, step: Step) -> None: ...

    with pytest.raises(
        SettingsError, match=r"Partial: has no checkpoint, close, .*inherit from actscope.frames.RowSink"
    ):
        actscope.capture(model, recorder=Partial())  # type: ignore[arg-type]


def test_a_recorder_with_four_methods_and_no_base_class_is_accepted_for_one_release(model: Any) -> None:
    class Four:
        """As such recorders were written before RowSink."""

        def __init__(self) -> None:
            self.rows, self.marks = 0, 0

        begin, end, close = LeastRecorder.begin, LeastRecorder.end, LeastRecorder.close
        put = LeastRecorder.put

        def mark(self, request: str, why: str = "") -> None:
            self.marks += 1

    four = Four()
    with pytest.warns(
        DeprecationWarning, match=r"Four has no checkpoint, failure.*inherit from actscope.frames.RowSink"
    ):
        session = actscope.capture(model, sites="all", recorder=four)  # type: ignore[arg-type]
    with session as cap, torch.no_grad():
        model(IDS)
        cap.mark("r000001")
        assert (cap.flush(), cap.checkpoint(), cap.known_requests) == (0, 0, frozenset())
    assert (four.rows, four.marks, cap.stats().recorder) == (-IDS.numel(), 1, None)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_raises_is_incomplete_and_the_next_is_whole(
    model: Any, recorder: MemoryRecorder, error: type[BaseException]
) -> None:
    """Rows of half a pass are never delivered; the next pass notices an interrupt, which runs no hook."""

    def fail(*_: Any) -> None:
        raise error

    with actscope.capture(model, sites="all", recorder=recorder) as cap, torch.no_grad():
        handle = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(IDS)
        handle.remove()
        model.model(IDS)
        model(IDS)
    assert [len(step.meta) for step in recorder.incomplete] == [8]
    assert len(recorder.requests) == 2
    assert cap.stats().incomplete_passes == 1
    assert cap.stats().passes == 3
    assert cap.stats().rows == 2 * 4 * 8


def test_a_pass_within_an_exception_handler_is_whole(model: Any, recorder: MemoryRecorder) -> None:
    with actscope.capture(model, sites="1", recorder=recorder), torch.no_grad():
        try:
            raise ValueError
        except ValueError:
            model(IDS)
    assert len(recorder.requests) == 1


def test_everything_is_taken_off_the_model_after_an_exception(model: Any, recorder: MemoryRecorder) -> None:
    before = hooks_of(model)
    with pytest.raises(ZeroDivisionError), actscope.capture(model, sites="all", recorder=recorder):
        assert hooks_of(model) > before
        assert "generate" in vars(model)
        raise ZeroDivisionError
    assert hooks_of(model) == before
    assert "generate" not in vars(model)
    assert recorder.closed


def test_the_same_model_is_not_captured_twice_at_once(model: Any, recorder: MemoryRecorder) -> None:
    with actscope.capture(model, sites="all", recorder=recorder) as cap:
        with pytest.raises(SettingsError, match="captured already"):
            actscope.capture(model.model, recorder=MemoryRecorder()).start()
        with pytest.raises(SettingsError, match="a capture already"):
            actscope.capture(cap)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="started before"):
            cap.start()
    with actscope.capture(model, sites="all", recorder=MemoryRecorder()):
        pass
    with pytest.raises(SettingsError, match="started before"):
        cap.start()
    with pytest.raises(SettingsError, match="does not run"):
        cap.checkpoint()


def test_a_tap_that_fails_goes_quiet_and_the_others_go_on(model: Any, recorder: MemoryRecorder) -> None:
    def fail(site: str) -> None:
        if site == "layers.1.resid_post":
            raise OSError("broken")

    recorder.on_put = fail
    bare = model(IDS).logits
    with actscope.capture(model, sites="all", recorder=recorder) as cap, torch.no_grad():
        assert torch.equal(model(IDS).logits, bare)
        model(IDS)
    assert cap.stats().faults == 1
    assert len(recorder.rows("r000002", "layers.2.resid_post")) == 8
    assert not recorder.newest("r000002", "layers.1.resid_post")


def test_a_fault_in_labelling_costs_the_rows_and_nothing_else(
    model: Any, recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = model(IDS).logits
    with actscope.capture(model, sites="all", recorder=recorder) as cap, torch.no_grad():
        monkeypatch.setattr(cap._passes._tokens, "label", lambda *_: 1 / 0)  # type: ignore[union-attr]
        assert torch.equal(model(IDS).logits, bare)
    assert cap.stats().faults == 1
    assert cap.stats().unowned_rows == 4 * 8
    assert not recorder.requests


def test_a_poisoned_recording_stops_and_the_model_goes_on(model: Any, recorder: MemoryRecorder) -> None:
    def fail(site: str) -> None:
        raise RecordingPoisoned("the disk is gone")

    recorder.on_put = fail
    with actscope.capture(model, sites="all", recorder=recorder) as cap, torch.no_grad():
        model(IDS)
        model(IDS)
    assert cap.stats().reasons == {"the recording takes no more rows": 2 * 4 * 8}
    assert cap.stats().rows == 0


def test_under_policy_error_the_user_gets_the_recording_error(model: Any, recorder: MemoryRecorder) -> None:
    def fail(site: str) -> None:
        raise RecordingError("the queue is full")

    recorder.on_put = fail
    with (
        actscope.capture(model, sites="all", recorder=recorder, policy="error"),
        pytest.raises(RecordingError, match="queue is full"),
        torch.no_grad(),
    ):
        model(IDS)
    assert len(recorder.incomplete) == 1


def test_threads_run_their_own_passes(model: Any, recorder: MemoryRecorder) -> None:
    """Four threads, interleaved in the middle of passes, each with its own requests."""
    texts = [torch.tensor(prompts(6 + i, seed=i)) for i in range(4)]
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def meet(*_: Any) -> None:
        barrier.wait(30)

    def run(i: int) -> None:
        try:
            with cap.request(f"thread-{i}"), torch.no_grad():
                model.generate(texts[i], max_new_tokens=5, do_sample=False, eos_token_id=None)
        except Exception as error:
            failures.append(error)

    handle = model.model.layers[1].register_forward_hook(meet)
    with actscope.capture(model, sites="0,3", recorder=recorder) as cap:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    handle.remove()
    assert not failures
    for i, text in enumerate(texts):
        bare = model(torch.tensor([recorder.ids(f"thread-{i}", "layers.3.resid_post")]), output_hidden_states=True)
        assert recorder.ids(f"thread-{i}", "layers.0.resid_post")[: text.shape[1]] == text[0].tolist()
        torch.testing.assert_close(recorder.rows(f"thread-{i}", "layers.0.resid_post"), bare.hidden_states[1][0])
    assert cap.stats().passes == 20
    assert cap.stats().incomplete_passes == cap.stats().unowned_rows == 0


def test_a_site_that_the_model_does_not_have_is_refused_before_anything_is_made(model: Any, tmp_path: Any) -> None:
    with pytest.raises(SiteError, match=r"did you mean model\.layers\.\*\.mlp"):
        actscope.capture(model, sites="model.layer.*.mlp", to=tmp_path / "x")
    with pytest.raises(SiteError, match=r"layers\.1\.mlp_out"):
        actscope.capture(model, sites="layers.1.mlp_ou", to=tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- copies from a GPU, and the thread that waits for them --------------------------------------------------------------


def waited_for(event: threading.Event) -> None:
    """Return once `event` is set; fails when it does not come."""
    assert event.wait(30)


def test_device_copies_are_delivered_in_order_and_only_when_ready() -> None:
    copies, copied = DeviceCopy(100), threading.Event()
    delivered: list[int] = []
    copies.send(lambda: waited_for(copied), lambda: delivered.append(1), 60)
    copies.send(lambda: None, lambda: delivered.append(2), 30)
    assert delivered == []
    copied.set()
    copies.drain()
    assert delivered == [1, 2]
    copies.close()


def test_device_copies_in_flight_stay_within_their_limit() -> None:
    copies, copied, sent = DeviceCopy(100), threading.Event(), threading.Event()
    copies.send(lambda: waited_for(copied), lambda: None, 80)

    def send_more() -> None:
        copies.send(lambda: None, lambda: None, 80)
        sent.set()

    thread = threading.Thread(target=send_more)
    thread.start()
    assert not sent.wait(0.1)  # it waits for room
    copied.set()
    assert sent.wait(30)
    thread.join()
    copies.close()


def test_what_a_delivery_raises_reaches_the_next_call_once() -> None:
    copies = DeviceCopy(100)

    def fail() -> None:
        raise RecordingError("full")

    copies.send(lambda: None, fail, 1)
    with pytest.raises(RecordingError, match="full"):
        copies.drain()
    copies.drain()
    copies.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_of_a_gpu_arrive_whole(recorder: MemoryRecorder) -> None:
    model, ids = model_of("llama").cuda(), IDS.cuda()
    with actscope.capture(model, sites="all", recorder=recorder), torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
    for layer in range(3):
        assert torch.equal(recorder.rows("r000001", f"layers.{layer}.resid_post"), states[layer + 1][0].cpu())
    assert len(recorder.rows("r000002", "layers.0.resid_post")) >= 27


def test_rows_go_straight_to_the_sink_on_a_cpu(recorder: MemoryRecorder) -> None:
    """No thread is needed: the rows are there when `put` and `end` return."""
    handover, step, rows = Handover(recorder), step_of(1, [("a", 0, 3)]), torch.randn(3, 8)
    before = threading.active_count()
    handover.begin(step)
    handover.put(step, "layers.0.resid_post", rows)
    handover.end(step)
    assert torch.equal(recorder.rows("a", "layers.0.resid_post"), rows)
    assert threading.active_count() == before
    handover.drain()
    handover.close()


def test_a_copy_that_is_made_meanwhile_generates_with_its_own_weights(model: Any, recorder: MemoryRecorder) -> None:
    with actscope.capture(model, sites="2", recorder=recorder):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.neg_()
        inside = other.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    after = other.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    mine = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(inside, after)
    assert not torch.equal(inside, mine)
    assert not recorder.requests


def test_rows_that_the_recording_refuses_are_counted_and_the_tap_stays(model: Any, tmp_path: Any) -> None:
    with actscope.capture(model, sites="2", to=tmp_path / "r.acts") as cap:
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            model.to(dtype)(IDS)
    stats = cap.stats()
    assert (stats.tokens, stats.rows, stats.unowned_rows) == (24, 16, 8)
    assert len(actscope.open(tmp_path / "r.acts")["layers.2.resid_post"]) == 16


def test_every_row_that_passes_a_tap_that_is_off_is_counted(model: Any, recorder: MemoryRecorder) -> None:
    def fail(site: str) -> None:
        raise ValueError("no")

    recorder.on_put = fail
    with actscope.capture(model, sites="2", recorder=recorder) as cap:
        for _ in range(3):
            model(IDS)
    assert cap.stats().reasons == {"a fault of actscope's own": 16}
    assert cap.stats().faults == 1


def test_a_forked_child_runs_the_model_unrecorded_and_leaves_the_recording_alone(model: Any, tmp_path: Any) -> None:
    """The child has none of the threads that write: its rows would fill the queue and then wait for ever."""
    with actscope.capture(model, sites="all", to=tmp_path / "r.acts", memory="16MiB", codec="none") as cap:
        model(IDS)
        child = os.fork()
        if not child:  # pragma: no cover
            signal.alarm(60)
            torch.set_num_threads(1)  # torch's own threads are not there either
            for _ in range(8):
                model(IDS.repeat(200, 10))
            cap.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        model(IDS)
    found = actscope.open(tmp_path / "r.acts")
    assert (len(found.requests), found.complete, found.damage) == (2, True, [])


def test_a_capture_that_nobody_stops_is_finished_when_the_interpreter_ends(tmp_path: Any) -> None:
    lines = (
        "import sys, torch, actscope",
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4))",
        "actscope.capture(model, sites='0', to=sys.argv[1]).start()",
        "model(torch.randn(2, 3, 4))",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path / "r.acts")], check=True, timeout=120)
    found = actscope.open(tmp_path / "r.acts")
    assert (found.n_rows, len(found["0"]), found.complete) == (6, 6, True)


def test_an_id_that_no_text_can_hold_is_refused_before_it_reaches_the_recording(
    model: Any, recorder: MemoryRecorder
) -> None:
    with (
        actscope.capture(model, sites="2", recorder=recorder) as cap,
        pytest.raises(SettingsError, match="surrogate"),
        cap.request("\ud800"),
    ):
        model(IDS)
