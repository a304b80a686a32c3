"""The plan of a harvest: everything that decides its bytes, and the units of work that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from actscope.errors import HarvestDamaged, SettingsError
from actscope.permutation import Permutation

FORMAT = "actscope-harvest"
VERSION = 1


class HarvestPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A harvest that anyone can carry out, or go on with: the same plan gives the same shards, whoever runs which unit.

    Versions of torch and transformers are in it, since kernels and models change with them, and so are threads and the
    device's kind: a worker that differs in any of it refuses the plan, rather than mix rows of two kinds.
    """

    format: str = FORMAT
    version: int = VERSION
    model: str
    revision: str
    reader: str
    tokenizer: str
    """Fingerprint of the tokenizer: hex."""
    dataset: str
    split: str
    column: str
    dataset_fingerprint: str
    dataset_texts: int
    """How many texts the dataset has."""
    texts: int
    """How many of them are harvested: the first so many of the order."""
    seed: int
    shuffle: bool
    unit_texts: int
    sites: tuple[str, ...]
    d_model: int
    dtype: str
    """Of the rows: float32, bfloat16 or float16."""
    model_dtype: str
    """What the model computes in, as it was asked for."""
    context: int
    mask: str
    pack: bool
    separator: str
    shard_format: str
    columns: str
    device: str
    """The kind of device: cpu or cuda."""
    threads: int
    batch_tokens: int
    torch: str
    transformers: str

    @property
    def id(self) -> str:
        """16 hex digits: of everything above."""
        return hashlib.sha256(encode(self)).hexdigest()[:16]

    @property
    def n_units(self) -> int:
        return -(-self.texts // self.unit_texts)

    def unit(self, number: int) -> Unit:
        """Raises IndexError when there is no such unit."""
        if not 0 <= number < self.n_units:
            raise IndexError(f"unit {number} of {self.n_units}")
        start = number * self.unit_texts
        return Unit(number, start, min(start + self.unit_texts, self.texts), self.id)

    def units(self) -> Iterator[Unit]:
        return map(self.unit, range(self.n_units))

    def text_numbers(self, unit: Unit) -> list[int]:
        """The numbers of a unit's texts. Shuffled, they are those of `actscope.extraction.stream`, epoch 0, same seed."""
        if not self.shuffle:
            return list(range(unit.start, unit.stop))
        return [int(text) for text in Permutation(self.dataset_texts, self.seed, 0).part(unit.start, unit.stop)]


@dataclass(frozen=True, slots=True)
class Unit:
    """The texts at places `start` .. `stop` - 1 of the plan's order."""

    number: int
    start: int
    stop: int
    plan_id: str

    @property
    def id(self) -> str:
        """16 hex digits: of the plan's content and the unit's place in it."""
        return hashlib.sha256(f"{self.plan_id}/{self.start}/{self.stop}".encode()).hexdigest()[:16]


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, and what a sample of its texts says of its size."""

    plan: HarvestPlan
    rows_per_text: float
    tokens_per_text: float


def encode(plan: HarvestPlan) -> bytes:
    """The plan as JSON: the same plan gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(plan, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes, where: str) -> HarvestPlan:
    """Read a plan. Raises HarvestDamaged, naming `where`, for what is none, SettingsError for one of another version."""
    try:
        raw = msgspec.json.decode(data)
        if isinstance(raw, dict) and raw.get("format") == FORMAT and raw.get("version") != VERSION:
            raise SettingsError(
                f"{where}: a harvest of version {raw.get('version')}; this actscope reads {VERSION}: use the one that made it"
            )
        plan = msgspec.convert(raw, HarvestPlan)
    except msgspec.DecodeError as error:
        raise HarvestDamaged(f"{where}: is no plan of a harvest: {error}") from error
    if plan.format != FORMAT:
        raise HarvestDamaged(f"{where}: expected format {FORMAT!r}, found {plan.format!r}")
    return plan


def differences(held: HarvestPlan, wanted: HarvestPlan) -> list[str]:
    """Every field in which two plans differ, as `field: held, not wanted`."""
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(held, name), getattr(wanted, name)) for name in HarvestPlan.__struct_fields__
    ]
    return [f"{name}: {_shown(old)}, not {_shown(new)}" for name, old, new in pairs if old != new]


def check_same(held: HarvestPlan, wanted: HarvestPlan, where: str) -> None:
    """Raises SettingsError, naming every difference, unless the two are the same plan."""
    if found := differences(held, wanted):
        raise SettingsError(
            f"{where} holds a harvest of another plan: {'; '.join(found)}\n"
            "Go on with the settings and versions of that one, or choose another place"
        )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
