"""The bank: columns, generations, and what does not fit."""

from __future__ import annotations

import json
from typing import get_type_hints

import msgspec
import numpy as np
import pytest

from actscope.errors import ProbeError
from actscope.probes import Bank, Probe, ProbedModel, ProbeInfo
from actscope.probes.bank import DescribedProbe
from actscope.probes.score import score

FACTS = ProbedModel("some/model", "abc123", d_model=8, n_layers=4)


def probe(name: str, **changes: object) -> Probe:
    info = ProbeInfo(id=name, site="layers.1.resid_post")
    return Probe(msgspec.structs.replace(info, **changes), np.ones(8, np.float32))


def test_a_swapped_probe_keeps_its_column_and_a_removed_ones_is_used_again() -> None:
    bank = Bank(FACTS, width=2)
    assert [bank.put(probe("a")), bank.put(probe("b")), bank.put(probe("a", bias=1.0))] == [0, 1, 0]
    bank.remove("a")
    assert bank.put(probe("c")) == 0


def test_every_change_is_a_new_generation_and_the_table_shows_it() -> None:
    bank = Bank(FACTS)
    bank.put(probe("a"))
    bank.put(probe("b"))
    table = json.loads(bank.table())
    assert table["generation"] == bank.generation == 2
    assert [(p["slot"], p["id"], p["layer"]) for p in table["probes"]] == [(0, "a", 1), (1, "b", 1)]


def test_the_table_has_a_range_only_where_one_is_known() -> None:
    bank = Bank(FACTS)
    for one in (probe("raw"), probe("share", activation="sigmoid"), probe("signed", range=(-2.0, 1.0))):
        bank.put(one)
    assert [(p["range"], p["signed"]) for p in bank.describe()] == [
        (None, False),
        ((0.0, 1.0), False),
        ((-2.0, 1.0), True),
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Probe(ProbeInfo(id="w", site="layers.1.resid_post"), np.ones(9, np.float32)), "width 9"),
        (probe("w", site="layers.4.resid_post"), "layers 0 to 3"),
        (probe("w", model="other/model"), "other/model"),
        (probe("w", model="some/model", revision="zzz"), "zzz"),
    ],
)
def test_a_probe_of_another_model_is_refused_with_both_sides_named(wrong: Probe, reason: str) -> None:
    bank = Bank(FACTS)
    with pytest.raises(ProbeError, match=reason):
        bank.put(wrong)
    assert bank.generation == 0


def test_a_described_probe_has_the_keys_and_types_of_its_type() -> None:
    """The type repeats the fields of ProbeInfo; they may not drift apart."""
    bank = Bank(FACTS)
    bank.put(probe("a"))
    [described] = bank.describe()
    hints, of_info = get_type_hints(DescribedProbe), get_type_hints(ProbeInfo)
    assert list(described) == list(hints)
    assert {name: hints[name] for name in of_info} == of_info


def test_a_full_bank_says_so() -> None:
    bank = Bank(FACTS, width=1)
    bank.put(probe("a"))
    with pytest.raises(ProbeError, match="all 1 columns"):
        bank.put(probe("b"))


def test_removing_what_is_not_there_lists_what_is() -> None:
    bank = Bank(FACTS)
    bank.put(probe("a"))
    with pytest.raises(ProbeError, match="there are: a"):
        bank.remove("b")


def test_an_activation_that_nobody_knows_is_an_error_and_no_identity() -> None:
    with pytest.raises(ProbeError, match="activation 'gelu': expected one of identity, relu, sigmoid, jumprelu"):
        score(np.ones((1, 2)), np.ones((2, 1), np.float32), np.zeros(1), ["gelu"], np.zeros(1))
