"""The plan: what decides the bytes, and the units that follow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actscope.errors import HarvestDamaged, SettingsError
from actscope.harvest import plan as plans
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.settings import HarvestSettings

#: What `plan()` and its second unit hash to; a change of these numbers makes every harvest that was begun another one.
PLAN_ID, UNIT_ID = "1e9c17f93f807943", "230df0329a88789c"
FIELDS: dict[str, Any] = {
    "model": "m", "revision": "r", "reader": "hf", "tokenizer": "t", "dataset": "d", "split": "train", "column": "text",
    "dataset_fingerprint": "f", "dataset_texts": 100, "texts": 25, "seed": 3, "shuffle": True, "unit_texts": 10,
    "sites": ("layers.0.resid_post",), "d_model": 8, "dtype": "float32", "model_dtype": "auto", "context": 16,
    "mask": "special", "pack": False, "separator": "none", "shard_format": "safetensors", "columns": "sites",
    "device": "cpu", "threads": 1, "batch_tokens": 64, "torch": "2", "transformers": "5",
}  # fmt: skip


def plan(**changes: Any) -> HarvestPlan:
    return HarvestPlan(**{**FIELDS, **changes})


def test_units_cover_the_texts_once() -> None:
    """Every text of the plan is in one unit, the last unit being shorter, and all are texts of the dataset."""
    given = plan()
    numbers = [number for unit in given.units() for number in given.text_numbers(unit)]
    assert [unit.stop - unit.start for unit in given.units()] == [10, 10, 5]
    assert len(set(numbers)) == 25 and set(numbers) <= set(range(100)) and numbers != sorted(numbers)
    assert plan(shuffle=False).text_numbers(given.unit(2)) == list(range(20, 25))
    with pytest.raises(IndexError):
        given.unit(3)


def test_ids_follow_from_the_content() -> None:
    """The same plan has the same id and unit ids on every machine; a change of any field changes them all."""
    assert (plan().id, plan().unit(1).id) == (PLAN_ID, UNIT_ID)
    others: list[dict[str, Any]] = [
        {"seed": 4},
        {"revision": "s"},
        {"threads": 2},
        {"torch": "3"},
        {"sites": ("layers.1.resid_post",)},
    ]
    found = {plan(**change).id for change in others} | {plan().id}
    assert len(found) == 6
    assert len({unit.id for unit in plan().units()} | {plan(seed=4).unit(0).id}) == 4


def test_a_plan_survives_its_json() -> None:
    assert plans.decode(plans.encode(plan()), "here") == plan()


def test_what_is_no_plan_of_ours_is_named() -> None:
    """Damage, another format and another version are three errors, each with the place."""
    raw = msgspec.json.decode(plans.encode(plan()))
    for data in (b"{", b"[]", msgspec.json.encode({**raw, "more": 1}), msgspec.json.encode({**raw, "format": "x"})):
        with pytest.raises(HarvestDamaged, match=r"rows/plan\.json"):
            plans.decode(data, "rows/plan.json")
    with pytest.raises(SettingsError, match="version 9"):
        plans.decode(msgspec.json.encode({**raw, "version": 9}), "rows/plan.json")


def test_every_difference_of_two_plans_is_named() -> None:
    with pytest.raises(SettingsError) as error:
        plans.check_same(plan(), plan(seed=5, sites=("layers.1.resid_post",)), "rows")
    assert "seed: 3, not 5; sites: layers.0.resid_post, not layers.1.resid_post" in str(error.value).replace(
        "sites: layers.0.resid_post, not layers.1.resid_post; seed: 3, not 5",
        "seed: 3, not 5; sites: layers.0.resid_post, not layers.1.resid_post",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "zarr"}, {"texts": 0}, {"texts": 3, "tokens": 3}, {"mask": "all"}, {"separator": "x"},
        {"format": "arrow", "mask": "special"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_met_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        HarvestSettings(model="m", dataset="d", sites="0", **wrong)
