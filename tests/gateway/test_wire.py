"""The types of what clients are sent, against the models that the OpenAPI document is made of."""

from __future__ import annotations

import msgspec
import pytest
from pydantic import BaseModel
from support.typed import fields_of, keys_of

from actscope.engines.controls import DescribedMark
from actscope.gateway.api import schemas, wire
from actscope.gateway.scores.display_range import LearntFacts, RangeFacts
from actscope.gateway.scores.probe_table import HeaderCell, SaeFacts
from actscope.probes.bank import DescribedProbe
from actscope.recording.flight import state
from actscope.serving.error_answer import ErrorAnswer, ErrorFacts

#: What the gateway and the engines write, and its model: the same keys, and the same ones are always there.
SAME: dict[type, type[BaseModel]] = {
    HeaderCell: schemas.ProbeHeader,
    wire.WireTokens: schemas.TokenBlock,
    wire.WireScores: schemas.ScoreBlock,
    wire.WireFeatures: schemas.FeatureBlock,
    wire.WireFinal: schemas.Final,
    wire.WirePayload: schemas.ActscopePayload,
    wire.WireRequest: schemas.WholeRequest,
    wire.WireUsage: schemas.Usage,
    wire.WireSummary: schemas.ProbeSummary,
    wire.WireToken: schemas.TokenEvent,
    wire.WireProbeUpdate: schemas.ProbeUpdateEvent,
    wire.WireProbeFinal: schemas.ProbeFinalEvent,
    wire.WireDone: schemas.DoneEvent,
    state.TriggerFacts: schemas.TriggerState,
    state.FlightFacts: schemas.FlightState,
    state.KeptFacts: schemas.KeptState,
    DescribedMark: schemas.Marked,
    ErrorAnswer: schemas.ErrorBody,
    ErrorFacts: schemas.Problem,
}


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.__name__)
def test_what_is_written_has_the_keys_of_its_schema(kind: type) -> None:
    assert keys_of(kind) == fields_of(SAME[kind])


def test_every_type_of_the_wire_is_compared_with_a_schema() -> None:
    kinds = {kind for name, kind in vars(wire).items() if name.startswith("Wire")}
    assert kinds - set(SAME) == {wire.WireCoverage}, "a base class of others"


def test_the_state_of_a_recording_has_the_keys_of_its_schema_and_all_of_them() -> None:
    """In the schema all but one may be absent: without a recording there is only `recording`. The gateway adds `replicas`."""
    written = keys_of(state.RecordingFacts)
    assert all(written.values())
    assert {*written, "replicas"} == set(schemas.RecordingState.model_fields)


def test_a_described_probe_has_what_clients_are_told() -> None:
    """`slot` and `jump` are for the gateway, which takes the former out and adds what it has learnt of the range."""
    assert set(schemas.Probe.model_fields) == {*keys_of(DescribedProbe), *keys_of(RangeFacts)} - {"slot", "jump"}
    assert set(schemas.LearntRange.model_fields) == set(keys_of(LearntFacts))


def test_an_sae_has_the_fields_of_its_schema() -> None:
    assert [field.name for field in msgspec.structs.fields(SaeFacts)] == list(schemas.Sae.model_fields)
