"""Rows whose labels are ambiguous are counted and not delivered, with one warning; the model's results do not change."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, padded, prompts
from transformers import DynamicCache

import actscope
from actscope.frames import RowFlag

_POST = "layers.2.resid_post"


@pytest.fixture
def model() -> Any:
    return model_of("llama")


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def test_beam_search_is_not_delivered_once_it_copies_sequences(
    model: Any, recorder: MemoryRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    ids = torch.tensor(prompts(5))
    ask = dict(max_new_tokens=8, num_beams=3, do_sample=False, eos_token_id=None)
    bare = model.generate(ids, **ask)
    with caplog.at_level(logging.WARNING), actscope.capture(model, sites="2,3", recorder=recorder) as cap:
        assert torch.equal(model.generate(ids, **ask), bare)
    stats = cap.stats()
    assert stats.unowned_rows == sum(stats.reasons.values()) > 0
    assert stats.unowned_rows + stats.rows == 2 * (3 * 5 + 3 * 7)
    told = [record for record in caplog.records if "copied or reordered" in record.message]
    assert len(told) == 1
    assert "num_beams=1" in told[0].message
    for request in recorder.requests:
        assert recorder.ids(request, _POST)[:5] == ids[0].tolist()


def test_batch_rows_that_are_selected_keep_their_requests(model: Any, recorder: MemoryRecorder) -> None:
    """A batch that drops and swaps rows of its cache, as when sequences end, loses no label."""
    ids = torch.tensor(prompts(6, 6, 6))
    with actscope.capture(model, sites="2", recorder=recorder) as cap, torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([2, 0]))
        model(torch.tensor([[7], [8]]), past_key_values=cache)
    assert recorder.ids("r000003", _POST) == [*ids[2].tolist(), 7]
    assert recorder.ids("r000001", _POST) == [*ids[0].tolist(), 8]
    assert recorder.ids("r000002", _POST) == ids[1].tolist()
    assert cap.stats().unowned_rows == 0


def test_positions_after_a_crop_are_recomputed(model: Any, recorder: MemoryRecorder) -> None:
    """A reader gets the newest computation of a position."""
    ids = torch.tensor(prompts(8))
    with actscope.capture(model, sites="2", recorder=recorder), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(-3)
        model(torch.tensor([[1, 2]]), past_key_values=cache)
        model(torch.tensor([[3]]), past_key_values=cache)
        model(torch.tensor([[4]]), past_key_values=cache)
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", _POST) == [*ids[0, :5].tolist(), 1, 2, 3, 4]
    recomputed = [bool(flags & RowFlag.RECOMPUTED) for flags in recorder.flags("r000001", _POST)]
    assert recomputed == [False] * 5 + [True] * 3 + [False]


def test_assisted_generation_leaves_the_accepted_tokens(model: Any, recorder: MemoryRecorder) -> None:
    """Drafts that were rejected are computed again; what is read at the end is the text that came out."""
    assistant, ids = model_of("llama"), torch.tensor(prompts(6))
    assistant.model.layers[3].mlp.down_proj.weight.data.mul_(-2)
    with actscope.capture(model, sites="2", recorder=recorder):
        out = model.generate(ids, assistant_model=assistant, max_new_tokens=20, do_sample=False, eos_token_id=None)
    newest = recorder.newest("r000001", _POST)
    text = out[0, :-1].tolist()
    assert [newest[p][0] for p in range(len(text))] == text
    flags = [newest[p][1] for p in range(len(text))]
    assert [bool(flag & RowFlag.PREFILL) for flag in flags] == [True] * 6 + [False] * (len(text) - 6)
    assert any(len(step.meta) > 1 for step in recorder.steps[1:])


def test_a_copy_of_a_cache_begins_a_request_of_its_own(model: Any, recorder: MemoryRecorder) -> None:
    """A prompt that is run once, its cache copied for each question."""
    ids = torch.tensor(prompts(6))
    with actscope.capture(model, sites="2", recorder=recorder), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        for token in (1, 2):
            model(torch.tensor([[token]]), past_key_values=copy.deepcopy(cache))
    assert [sorted(recorder.newest(request, _POST)) for request in recorder.requests] == [[*range(6)], [6], [6]]
    assert [recorder.ids(request, _POST)[-1] for request in recorder.requests[1:]] == [1, 2]


def test_a_cache_that_is_emptied_and_used_again_begins_a_request(model: Any, recorder: MemoryRecorder) -> None:
    ids, cache = torch.tensor(prompts(6, 6)), DynamicCache()
    with actscope.capture(model, sites="2", recorder=recorder), torch.no_grad():
        for lane in range(2):
            model(ids[lane : lane + 1], past_key_values=cache)
            cache.reset()  # type: ignore[no-untyped-call]
    assert [recorder.ids(request, _POST) for request in recorder.requests] == ids.tolist()


def _call(model: Any, **arguments: Any) -> None:
    with torch.no_grad():
        model(**arguments)


IDS = torch.tensor(prompts(8))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"input_ids": IDS, "attention_mask": torch.zeros(1, 1, 8, 8)}, "attention mask is not"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}, "packed in one row"),
        ({"input_ids": IDS, "position_ids": torch.arange(0, 16, 2)[None]}, "one by one"),
        (
            {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2]])},
            "packed in one row",
        ),
        ({"input_ids": IDS, "cu_seq_lens_q": torch.tensor([0, 3, 8])}, "packed in one row"),
    ],
)
def test_arguments_that_make_labels_ambiguous(
    model: Any, recorder: MemoryRecorder, arguments: Any, reason: str
) -> None:
    with actscope.capture(model, sites="1,2", recorder=recorder) as cap:
        _call(model, **arguments)
    assert not recorder.requests
    assert cap.stats().unowned_rows == 16
    assert reason in next(iter(cap.stats().reasons))


def test_position_ids_that_count_the_tokens_are_unambiguous(model: Any, recorder: MemoryRecorder) -> None:
    batch = padded(prompts(3, 8), left=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with actscope.capture(model, sites="2", recorder=recorder) as cap:
        _call(model, **batch, position_ids=positions)
        _call(model, input_ids=IDS, position_ids=torch.arange(100, 108)[None])
    assert cap.stats().unowned_rows == 0
    assert sorted(recorder.newest("r000003", _POST)) == list(range(8))


def test_a_cache_that_grew_unseen_is_ambiguous(model: Any, recorder: MemoryRecorder) -> None:
    """Passes through `model.forward` run no hooks, so the rows after them have no known position and are not delivered."""
    with actscope.capture(model, sites="2", recorder=recorder) as cap, torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
        model.model.forward(torch.tensor([[5]]), past_key_values=cache)
        model(torch.tensor([[6]]), past_key_values=cache)
    assert recorder.ids("r000001", _POST) == IDS[0].tolist()
    assert set(cap.stats().reasons) == {
        "a module ran outside the model's own forward pass",
        "the cache has grown by passes that were not captured",
    }


def test_ids_that_do_not_fit_the_batch_are_ambiguous(model: Any, recorder: MemoryRecorder) -> None:
    with actscope.capture(model, sites="2", recorder=recorder) as cap, cap.request(["a", "b"]):
        _call(model, input_ids=torch.tensor(prompts(4, 4, 4)))
    assert not recorder.requests
    assert cap.stats().unowned_rows == 12


class Twice(torch.nn.Module):
    """Runs its encoder on two texts in one pass."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_ids: Any, others: Any, attention_mask: Any = None) -> Any:
        return self.encoder(others), self.encoder(input_ids)


def test_a_part_that_runs_on_other_inputs_is_ambiguous(recorder: MemoryRecorder) -> None:
    """No row of the pass is delivered: rows of the other text could be taken for those of the first."""
    model = Twice(model_of("bert"))
    with actscope.capture(model, sites="1", recorder=recorder) as cap:
        _call(model, input_ids=IDS, others=IDS.flip(1))
    assert not recorder.requests
    assert len(recorder.incomplete) == 1
    assert cap.stats().unowned_rows == 16
    with actscope.capture(model.encoder, sites="1", recorder=recorder):
        _call(model, input_ids=IDS, others=IDS.flip(1))
    assert [recorder.ids(request, "layers.1.resid_post") for request in recorder.requests] == [
        IDS.flip(1)[0].tolist(),
        IDS[0].tolist(),
    ]


class Recursive(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: Any, depth: int = 2) -> Any:
        x = self.inner(x)
        return self(x, depth - 1) if depth else x


def test_a_model_that_calls_itself_is_ambiguous(recorder: MemoryRecorder) -> None:
    model = Recursive()
    with actscope.capture(model, sites="inner", recorder=recorder) as cap:
        model(torch.randn(3, 4))
        model(torch.randn(3, 4), 0)
    assert cap.stats().unowned_rows == 9
    assert len(recorder.requests) == 3
    assert len(recorder.incomplete) == 1


class Wrapper(torch.nn.Module):
    """Keeps a cache, or makes a mask, that its caller does not see."""

    def __init__(self, part: Any, *, caches: bool) -> None:
        super().__init__()
        self.part, self.caches, self.cache = part, caches, None

    def forward(self, input_ids: Any) -> Any:
        if not self.caches:
            return self.part(input_ids, attention_mask=(input_ids != 0).long())
        out = self.part(input_ids, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out


def test_a_part_that_goes_on_from_a_hidden_cache_is_ambiguous(model: Any, recorder: MemoryRecorder) -> None:
    """Seen from outside every pass begins at position 0; where the part's cache says otherwise nothing is delivered."""
    wrapper = Wrapper(model, caches=True)
    with actscope.capture(wrapper, sites="part.model.layers.2", recorder=recorder) as cap:
        for ids in ([1, 2, 3], [4], [5]):
            wrapper(torch.tensor([ids]))
    assert [step.n_rows for step in recorder.steps if step.n_rows] == [3]
    assert cap.stats().reasons == {"the model ran a part of itself on other inputs, or twice": 2}


def test_a_mask_that_is_made_within_the_model_is_ambiguous(model: Any, recorder: MemoryRecorder) -> None:
    wrapper = Wrapper(model, caches=False)
    with actscope.capture(wrapper, sites="part.model.layers.2", recorder=recorder) as cap:
        wrapper(torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]]))
        wrapper(torch.tensor([[1, 2, 3]]))
    assert [step.n_rows for step in recorder.steps if step.n_rows] == [3]
    assert cap.stats().unowned_rows == 8


class OtherCache(torch.nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, input_ids: Any, kv_cache: Any = None, start_pos: int = 0) -> Any:
        return self.part(inputs_embeds=self.part.get_input_embeddings()(input_ids), past_key_values=kv_cache)


@pytest.mark.parametrize("given", ["kv_cache", "start_pos"])
def test_a_cache_under_another_name_is_ambiguous(model: Any, recorder: MemoryRecorder, given: str) -> None:
    other = OtherCache(model)
    with actscope.capture(other, sites="part.model.layers.2", recorder=recorder) as cap:
        cache = other(torch.tensor([[1, 2, 3]])).past_key_values
        other(torch.tensor([[4]]), **{given: cache if given == "kv_cache" else 3})
    assert [step.n_rows for step in recorder.steps if step.n_rows] == [3]
    assert cap.stats().unowned_rows == 1


class TimeFirst(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.block = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=False)

    def forward(self, input_ids: Any) -> Any:
        return self.block(self.embedding(input_ids).transpose(0, 1)).transpose(0, 1)


def test_rows_that_lie_time_first_do_not_pass_for_others_in_a_square_batch(recorder: MemoryRecorder) -> None:
    """[3, 3, d] fits both layouts; a site whose layout another pass has shown is unambiguous."""
    model = TimeFirst().eval()
    with actscope.capture(model, sites="embedding,block", recorder=recorder) as cap:
        model(torch.arange(9).reshape(3, 3))
        model(torch.arange(6).reshape(2, 3))
        model(torch.arange(9).reshape(3, 3))
    assert {site for _, site in recorder.computed} == {"embedding"}
    assert cap.stats().reasons == {
        "a batch of as many sequences as columns may lie [time, batch] in this model": 9 + 9 + 9,
        "a module's rows are others than the tokens of the pass": 6,
    }
    last = recorder.requests[-1]
    assert torch.equal(recorder.rows(last, "embedding"), model.embedding(torch.tensor([6, 7, 8])))


def test_square_batches_of_transformers_models_are_sure(model: Any, recorder: MemoryRecorder) -> None:
    with actscope.capture(model, sites="2", recorder=recorder) as cap:
        model(torch.tensor(prompts(4, 4, 4, 4)))
    assert cap.stats().unowned_rows == 0
    assert len(recorder.requests) == 4


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.inner(x)


def test_rows_of_a_copy_do_not_pass_for_the_models(recorder: MemoryRecorder) -> None:
    """A copy that is made while a capture runs has its hooks, but is another model."""
    model = Plain()
    with actscope.capture(model, sites="inner", recorder=recorder) as cap:
        copy.deepcopy(model)(torch.randn(2, 3, 4))
        model(torch.randn(2, 3, 4))
    assert len(recorder.requests) == 2
    assert cap.stats().reasons == {"a module ran outside the model's own forward pass": 6}
