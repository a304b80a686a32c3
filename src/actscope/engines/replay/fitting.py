"""Check which probes can be computed from a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from actscope.engines.replay.facts import RecordedModel
from actscope.errors import ProbeError
from actscope.probes import Bank, Probe


@dataclass(frozen=True, slots=True)
class Unfit:
    """A probe that cannot be computed, and the reason."""

    probe: str
    why: str


def fit(probe: Probe, model: RecordedModel, *, any_model: bool = False) -> Probe:
    """Check that a recording has the rows that a probe reads.

    Args:
        probe: The probe.
        model: Facts about the recorded model.
        any_model: Accept a probe for another model or revision, so that only its site and its width must match.

    Returns:
        The probe; with `any_model`, a copy without its model and revision.

    Raises:
        ProbeError: The site was not recorded, the width differs, or the probe is for another model or revision.
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
        raise ProbeError(f"{error}; --any-model uses it anyway") from error
    return probe


def check_recorded(probe: Probe, model: RecordedModel) -> None:
    """Raise ProbeError unless the recording has rows of the probe's site and width."""
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
    """Divide probes into those that can be computed and those whose rows are missing.

    A probe for another model or revision raises ProbeError, as with a live engine. With `lenient` it counts as unfit instead.
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
