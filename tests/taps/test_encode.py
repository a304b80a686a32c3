"""Features inside the forward pass against the encoder's definition in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from actscope.probes.encoder import ENCODERS, NORMALISATIONS, SaeEncoder
from actscope.taps import encode


def encoder(kind: str = "relu", *, d: int = 24, m: int = 100, k: int = 5, normalisation: str = "none") -> SaeEncoder:
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    threshold = np.abs(numbers(m)) * 2 if kind == "jumprelu" else np.zeros(m, np.float32)
    return SaeEncoder(
        numbers(d, m),
        numbers(m),
        numbers(d),
        threshold,
        kind,
        min(k, m) if kind == "topk" else 0,
        None,
        "",
        normalisation,
    )


def run(
    one: SaeEncoder, hidden: torch.Tensor, residual: torch.Tensor | None = None, places: int = 8, max_rows: int = 16
) -> torch.Tensor:
    features = torch.full((max_rows, 2 * places), 7.0)
    encode.encode_reference(
        hidden,
        residual,
        **tensors_of(one),
        activation=ENCODERS[one.activation],
        features=features,
        k=min(places, one.k or places),
        normalisation=one.normalisation,
    )
    return features


def tensors_of(one: SaeEncoder) -> dict[str, Any]:
    """The encoder's arrays as tensors, by the names of the op's arguments."""
    return {name: torch.from_numpy(getattr(one, name)) for name in ("weight", "bias", "pre_bias", "threshold")}


def check(features: np.ndarray, whole: np.ndarray) -> None:
    """`features` [n, 2 * places] are the strongest of `whole` [n, m], largest first, and nothing else."""
    numbers, values = features[:, 0::2].astype(int), features[:, 1::2]
    places = values.shape[1]
    strongest = np.sort(np.pad(whole, ((0, 0), (0, places))), axis=1)[:, ::-1][:, :places]
    np.testing.assert_allclose(values, strongest, rtol=1e-4, atol=1e-4)
    assert ((numbers == -1) == (values == 0)).all()
    assert (np.diff(values, axis=1) <= 0).all()
    for row, (row_numbers, row_values) in enumerate(zip(numbers, values, strict=True)):
        fired = row_values > 0
        assert len(set(row_numbers[fired])) == fired.sum()
        np.testing.assert_allclose(whole[row, row_numbers[fired]], row_values[fired], rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_features_are_the_strongest_of_the_definition(data: st.DataObject) -> None:
    """For every activation and normalisation, in one chunk or many, with fewer places than features fire, or more."""
    draw = data.draw
    one = encoder(
        draw(st.sampled_from(list(ENCODERS))),
        m=draw(st.sampled_from([1, 3, 64, 100])),
        k=draw(st.integers(1, 12)),
        normalisation=draw(st.sampled_from(NORMALISATIONS)),
    )
    n, dtype = draw(st.integers(1, 16)), draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    torch.manual_seed(draw(st.integers(0, 999)))
    hidden, residual = torch.randn(n, 24).to(dtype), torch.randn(n, 24).to(dtype) if draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_CHUNK_NUMBERS", draw(st.sampled_from([1, 400, 1 << 24])))
        patch.setattr(encode, "_LEAST_CHUNK", draw(st.sampled_from([1, 30])))
        features = run(one, hidden, residual, places=draw(st.sampled_from([1, 4, 8, 120])))
    rows = hidden if residual is None else hidden + residual
    check(features[:n].numpy(), one.encode(rows.float().numpy()))
    assert (features[n:] == 7).all()


def test_a_topk_encoder_keeps_its_own_k_where_there_are_more_places() -> None:
    features = run(encoder("topk", k=3), torch.randn(4, 24), places=8)
    assert (features[:4, 6::2] == -1).all() and (features[:4, 7::2] == 0).all()
    assert (features[:4, 0:6:2] >= 0).all()


def test_rows_beyond_the_buffer_are_ignored_and_batches_are_rows() -> None:
    hidden = torch.randn(2, 20, 24)
    features = run(encoder(), hidden, max_rows=16)
    torch.testing.assert_close(features, run(encoder(), hidden.reshape(40, 24)[:16]))


def test_a_row_that_is_not_a_number_has_infinite_features_and_no_neighbour_has() -> None:
    hidden = torch.randn(3, 24)
    hidden[1, 2] = torch.nan
    features = run(encoder("jumprelu"), hidden)
    assert features[1, 1::2].isinf().all()
    assert features[[0, 2]].isfinite().all()


def test_it_reads_nothing_back_and_has_fixed_shapes() -> None:
    """It runs on tensors that have shapes and no numbers, so that a CUDA graph can hold it."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        arguments: dict[str, Any] = {
            name: mode.from_tensor(tensor) for name, tensor in tensors_of(encoder("jumprelu")).items()
        }
        hidden, features = torch.randn(4, 24), torch.zeros(16, 8)
        with pytest.raises(DataDependentOutputException):
            features.max().item()  # what reads a number back is noticed
        with pytest.raises(DynamicOutputShapeException):
            features.nonzero()  # and so is a shape that depends on numbers
        encode.encode_reference(hidden, hidden, **arguments, activation=3, features=features, k=4)
        values, numbers = encode._strongest(hidden, arguments["weight"], arguments["bias"], arguments["threshold"], 4)
    assert isinstance(features, FakeTensor) and features.shape == (16, 8)
    assert values.shape == numbers.shape == (4, 4)
