"""Row taps: where each site is read, and what is handed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, locate, resolve
from actscope.taps.rows import RowTaps, tensor_of
from actscope.taps.text_model import blocks


class Pair(nn.Module):
    def forward(self, hidden_states: Any) -> Any:
        return hidden_states + 1, None


def test_inputs_and_outputs_are_handed_on_by_number_until_detached() -> None:
    model = nn.Sequential(Pair())
    places = resolve(model, "0,0:in")
    seen: list[tuple[int, Any]] = []
    taps = RowTaps(places, lambda number, value: seen.append((number, tensor_of(value))))
    taps.attach()
    with pytest.raises(RuntimeError, match="already"):
        taps.attach()
    x = torch.zeros(2, 3)
    model(x)
    model[0](hidden_states=x)
    taps.detach()
    taps.detach()
    model(x)
    names = [site.name for site in taps.sites]
    assert [(names[number], float(value.sum())) for number, value in seen] == [("0:in", 0.0), ("0", 6.0)] * 2


def test_the_tensor_of_tuples_and_mappings_is_their_first() -> None:
    x = torch.ones(2)
    assert tensor_of(x) is tensor_of((x, None)) is tensor_of({"a": None, "b": x}) is tensor_of([None, x])
    with pytest.raises(SiteError, match="found tuple"):
        tensor_of((None, 3))


def test_near_misses_are_named() -> None:
    model = nn.ModuleDict({"encoder": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    with pytest.raises(SiteError, match=r"did you mean encoder\.\*"):
        resolve(model, "encodr.*")
    with pytest.raises(SiteError, match=r"did you mean encoder\.1 or"):
        resolve(model, "encodr.1")
    with pytest.raises(SiteError, match="no module"):
        locate(model, Site(None, "encoder.7"))
    with pytest.raises(SiteError, match="has no config"):
        blocks(model)


def test_globs_stay_within_a_part_of_a_path_unless_doubled() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1), "c": nn.ModuleDict({"b": nn.Linear(1, 1)})})})
    assert [site.name for site in resolve(model, "a.*")] == ["a.b", "a.c"]
    assert [site.name for site in resolve(model, "a.**")] == ["a.b", "a.c", "a.c.b"]
    assert [site.name for site in resolve(model, "**.b,a.b")] == ["a.b", "a.c.b"]


def test_of_several_runs_in_a_pass_the_one_after_another_module_is_handed_on() -> None:
    first, second, shared = nn.Identity(), nn.Identity(), nn.Identity()
    seen: list[float] = []
    places = {Site(None, "final_norm"): Location(shared, "output", after=second)}
    taps = RowTaps(places, lambda number, value: seen.append(float(tensor_of(value))))
    taps.attach()
    for _ in range(2):
        for module, value in ((shared, 0), (first, 1), (shared, 2), (second, 3), (shared, 4), (shared, 5)):
            module(torch.tensor(float(value)))
    assert seen == []  # the pass in which `second` ran is over: its output is gone
    stream = second(torch.tensor(3.0))
    shared(stream + 1)
    shared(stream + 2)
    assert seen == [4.0]
