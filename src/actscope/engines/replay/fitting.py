"""Which probes can be computed from a recording, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from actscope.engines.replay.facts import RecordedModel
from actscope.errors import ProbeError
from actscope.probes import Bank, Probe


@dataclass(frozen=True, slots=True)
class Unfit:
    """A probe that cannot be computed, and why."""

    probe: str
    why: str


def fit(probe: Probe, model: RecordedModel, *, any_model: bool = False) -> Probe:
    """The probe as it is to be scored. Raises ProbeError, saying why, when the recording does not have what it reads,
    or when it was made for another model or revision.

    With `any_model` what it says of its model is taken out, so that only its site and its width must fit.
    """
    check_recorded(probe, model)
    if any_model:
        return Probe(
            msgspec.structs.replace(probe.info, model=None, revision=None),
            probe.weight,
            probe.test_inputs,
            probe.test_scores,
        )
    try:
        Bank(model.facts, width=1).check(probe)
    except ProbeError as error:
        raise ProbeError(f"{error}; --any-model scores with it all the same") from error
    return probe


def check_recorded(probe: Probe, model: RecordedModel) -> None:
    """Raise ProbeError unless rows of the probe's site, and of its width, are in the recording."""
    width = model.widths.get(probe.info.site)
    if width is None:
        there = ", ".join(model.widths) or "none"
        raise ProbeError(
            f"probe {probe.id!r} reads {probe.info.site}, which was not recorded; sites with rows: {there}"
        )
    if width != probe.d:
        raise ProbeError(f"probe {probe.id!r} reads rows of width {probe.d}; at {probe.info.site} they have {width}")


def sort_out(
    probes: Iterable[Probe], model: RecordedModel, *, any_model: bool = False, lenient: bool = False
) -> tuple[list[Probe], list[Unfit]]:
    """The probes that can be computed, and those that cannot for want of their rows.

    A probe of another model or revision is an error, as it is for a live engine, unless `lenient`: then it is among
    those that cannot.
    """
    fitting: list[Probe] = []
    unfit: list[Unfit] = []
    for probe in probes:
        try:
            check_recorded(probe, model)
        except ProbeError as error:
            unfit.append(Unfit(probe.id, str(error)))
            continue
        try:
            fitting.append(fit(probe, model, any_model=any_model))
        except ProbeError as error:
            if not lenient:
                raise
            unfit.append(Unfit(probe.id, str(error)))
    return fitting, unfit
