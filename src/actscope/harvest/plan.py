"""Plan of a harvest: everything that decides its bytes, and its units of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from actscope.errors import HarvestDamaged, SettingsError
from actscope.permutation import Permutation
from actscope.runtime.decoding import decode_json

FORMAT = "actscope-harvest"
VERSION = 1
#: dtypes of rows.
DTYPES = ("float32", "bfloat16", "float16")


class HarvestPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Complete description of a harvest. The same plan gives the same shards, whichever worker runs which unit.

    It includes the versions of torch and transformers, because kernels and models change with them, the number of threads, and
    the kind of device. A worker that differs in any field refuses the plan, so that rows of different origin are never mixed.
    """

    format: str = FORMAT
    version: int = VERSION
    model: str
    revision: str
    reader: str
    tokenizer: str
    """Fingerprint of the tokenizer, in hex."""
    dataset: str
    split: str
    column: str
    dataset_fingerprint: str
    dataset_texts: int
    """Number of texts of the dataset."""
    texts: int
    """Number of texts that are harvested: the first ones of the order."""
    seed: int
    shuffle: bool
    unit_texts: int
    sites: tuple[str, ...]
    d_model: int
    dtype: str
    """dtype of the rows: float32, bfloat16 or float16."""
    model_dtype: str
    """dtype in which the model computes, as in the settings."""
    context: int
    mask: str
    pack: bool
    separator: str
    shard_format: str
    columns: str
    device: str
    """Kind of device: cpu or cuda."""
    threads: int
    batch_tokens: int
    torch: str
    transformers: str

    @property
    def id(self) -> str:
        """Hash of all fields: 16 hex digits."""
        return hashlib.sha256(encode(self)).hexdigest()[:16]

    @property
    def n_units(self) -> int:
        """Return the number of units; the last may have fewer texts."""
        return -(-self.texts // self.unit_texts)

    def unit(self, number: int) -> Unit:
        """Return a unit. Raises IndexError if there is no such unit."""
        if not 0 <= number < self.n_units:
            raise IndexError(f"unit {number} of {self.n_units}")
        start = number * self.unit_texts
        return Unit(number, start, min(start + self.unit_texts, self.texts), self.id)

    def units(self) -> Iterator[Unit]:
        """Iterate over all units, in order."""
        return map(self.unit, range(self.n_units))

    def text_numbers(self, unit: Unit) -> list[int]:
        """Return the numbers of a unit's texts. A shuffled order is that of `actscope.extraction.stream`, epoch 0, same seed."""
        if not self.shuffle:
            return list(range(unit.start, unit.stop))
        return [int(text) for text in Permutation(self.dataset_texts, self.seed, 0).part(unit.start, unit.stop)]


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit of work: the texts at places `start` to `stop - 1` of the plan's order."""

    number: int
    start: int
    stop: int
    plan_id: str

    @property
    def id(self) -> str:
        """Hash of the plan's content and the unit's place in it: 16 hex digits."""
        return hashlib.sha256(f"{self.plan_id}/{self.start}/{self.stop}".encode()).hexdigest()[:16]


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """Plan, and an estimate of its size from a sample of its texts."""

    plan: HarvestPlan
    rows_per_text: float
    tokens_per_text: float


def encode(plan: HarvestPlan) -> bytes:
    """Encode a plan as JSON. The same plan gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(plan, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes, where: str) -> HarvestPlan:
    """Decode a plan.

    Args:
        data: JSON, as `encode` returns it.
        where: Place of the data, for error messages.

    Raises:
        HarvestDamaged: The data is not a plan.
        SettingsError: The plan has another version.
    """
    what = f"{where}: is not the plan of a harvest"
    raw = decode_json(data, object, HarvestDamaged, what)
    if isinstance(raw, dict) and raw.get("format") == FORMAT and raw.get("version") != VERSION:
        raise SettingsError(
            f"{where}: a harvest of version {raw.get('version')}, but this actscope reads version {VERSION}: "
            "use the actscope that made it"
        )
    plan = decode_json(data, HarvestPlan, HarvestDamaged, what)
    if (wrong := out_of_range(plan)) is not None:
        raise HarvestDamaged(f"{what}: {wrong}")
    if plan.format != FORMAT:
        raise HarvestDamaged(f"{where}: expected format {FORMAT!r}, found {plan.format!r}")
    return plan


#: Least and greatest value of the plan's numbers.
_RANGES = {
    "dataset_texts": (0, 1 << 48),
    "texts": (0, 1 << 48),
    "unit_texts": (1, 1 << 48),
    "d_model": (1, 1 << 24),
    "context": (1, 1 << 32),
}


def out_of_range(plan: HarvestPlan) -> str | None:
    """Return the first value of a plan that no harvest has, or None."""
    for name, (least, most) in _RANGES.items():
        if not least <= (value := getattr(plan, name)) <= most:
            return f"{name} {value}: expected {least} to {most}"
    if plan.dtype not in DTYPES:
        return f"dtype {plan.dtype!r}: expected one of {', '.join(DTYPES)}"
    return None


def differences(held: HarvestPlan, wanted: HarvestPlan) -> list[str]:
    """Return every field in which two plans differ, as `field: held, not wanted`."""
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(held, name), getattr(wanted, name)) for name in HarvestPlan.__struct_fields__
    ]
    return [f"{name}: {_shown(old)}, not {_shown(new)}" for name, old, new in pairs if old != new]


def check_same(held: HarvestPlan, wanted: HarvestPlan, where: str) -> None:
    """Raise SettingsError, naming every difference, unless the two plans are the same."""
    if found := differences(held, wanted):
        raise SettingsError(
            f"{where} holds a harvest of another plan: {'; '.join(found)}\n"
            "Continue with the settings and versions of that plan, or choose another place"
        )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
