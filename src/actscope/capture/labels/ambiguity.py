"""Reasons for which rows are not delivered: a wrong label is worse than a missing row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """A reason why labels are ambiguous: the name under which rows are counted, and advice for the user."""

    name: str
    advice: str


MASK_FORM = Ambiguity("attention mask is not [batch, columns]", "pass the 2-D mask of the tokenizer, or none")
MASK_SHAPE = Ambiguity(
    "attention mask does not cover the cache and this pass", "pass a mask of [batch, cached + new columns], or none"
)
MASK_CHANGED = Ambiguity("attention mask says otherwise of columns that ran before", "keep the mask of earlier columns")
PACKED = Ambiguity(
    "several sequences are packed in one row", "run one sequence a row, padded, with the mask that goes with it"
)
POSITIONS = Ambiguity("position ids do not count the tokens one by one", "leave position_ids to the model")
STATE_CACHE = Ambiguity(
    "the model keeps a state whose tokens cannot be told", "pass whole sequences, with use_cache=False"
)
STATE_UNSEEN = Ambiguity(
    "a recurrent state holds passes that were not captured, and does not tell how many",
    "capture every pass over a state from the first token on, or begin with a new one",
)
FOREIGN_CACHE = Ambiguity("past_key_values is no cache that tells its length", "use a transformers Cache")
CACHE_GREW = Ambiguity(
    "the cache has grown by passes that were not captured", "capture every pass over a cache, or begin with a new one"
)
CACHE_TAKEN = Ambiguity("the request goes on in another cache", "use the newer cache, or a new request id")
CACHE_SPLIT = Ambiguity(
    "sequences of the cache were copied or reordered, as beam search does",
    "generate with num_beams=1, or run the finished text through the model once more",
)
BATCH_CHANGED = Ambiguity("the batch has another size than its cache", "keep the lanes of a batch as they began")
INPUT_FORM = Ambiguity(
    "neither input_ids [batch, columns] nor inputs_embeds [batch, columns, d]", "pass one of the two"
)
IDS_DO_NOT_FIT = Ambiguity(
    "the ids given to cap.request() do not fit the batch", "give one id for each sequence, or one for all"
)
INNER_DIFFERS = Ambiguity(
    "the model ran a part of itself on other inputs, or twice", "capture that part itself: actscope.capture(model.part)"
)
RECURSION = Ambiguity("the model called itself", "capture the part that does not")
SHAPE = Ambiguity("a module's rows are others than the tokens of the pass", "choose sites with one row for each token")
TURNED = Ambiguity(
    "a batch of as many sequences as columns may lie [time, batch] in this model",
    "run another number of sequences first: it shows how rows lie",
)
TWICE = Ambiguity("a module ran more than once in a pass", "nothing: its first run was kept")
SILENT = Ambiguity(
    "a module did not run in a pass, or ran where hooks do not",
    "capture a model that is not scripted, exported or replayed as a CUDA graph; a layer that is skipped has no rows",
)
OUTSIDE = Ambiguity("a module ran outside the model's own forward pass", "call the model that is being captured")
NO_INPUT = Ambiguity("the module was called without a tensor that has a batch", "pass tensors of [batch, ...]")
UNTRUE = Ambiguity(
    "a point is not what its name says in this model", "see the error in the log, which says what to name instead"
)
UNCHECKED = Ambiguity(
    "the first pass, which shows whether points are what their names say, did not end in another thread",
    "let one pass end before other threads run the model",
)
FAULT = Ambiguity("a fault of actscope's own", "see the traceback in the log, and report it")


class AmbiguousLabels(Exception):
    """Labels of a pass are ambiguous, so none of its rows is delivered."""

    def __init__(self, doubt: Ambiguity) -> None:
        self.doubt = doubt
        super().__init__(doubt.name)
