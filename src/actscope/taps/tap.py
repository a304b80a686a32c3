"""`actscope::tap` and `actscope::encode`: the ops in compiled models and CUDA graphs, for scores, rows and SAE features.

They are not defined with `torch.library.custom_op`, whose checks cost 12 µs per call (docs/log.md), which is
noticeable in a layer of a small model. Their operands are whole buffers and integers, so changing the buffers'
content never recompiles. Every run increments a counter in `fired`. A call that fails is logged once and does not
increment it, so its data is not delivered; the model continues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actscope.probes.encoder import ENCODERS, SaeEncoder
from actscope.taps.encode import encode_reference
from actscope.taps.ops import activate

_LIBRARY: Any = torch.library.Library("actscope", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "tap(Tensor hidden, Tensor? residual, Tensor(a!) board, Tensor(b!) store, Tensor weight, Tensor bias, Tensor jump, "
    "Tensor activation, Tensor columns, Tensor active, Tensor keep, Tensor wanted, Tensor(c!) fired, int site) -> ()"
)
_LIBRARY.define(
    "encode(Tensor hidden, Tensor? residual, Tensor(a!) board, int first, int places, Tensor weight, Tensor bias, "
    "Tensor pre_bias, Tensor threshold, int activation, int k, str normalisation, Tensor(b!) fired, int site) -> ()"
)

log = logging.getLogger("actscope.taps")
_reported: set[str] = set()


class TapBuffers(torch.nn.Module):
    """Everything that the taps of one model read and write, on the model's device, for the model's lifetime.

    board       float32 [max_rows, width + 2 * n_features + 1]
                                                 scores, then the strongest SAE features as (number, activation) pairs;
                                                 NaN is "not computed"; the last column is a spare
    store       dtype [max_rows, n_kept * d]     raw rows, the kept sites side by side
    weight      float32 [n_sites, d, width]      probes of each site in its first slots; bias, jump float32, activation
                                                 int64, columns int64 [n_sites, width] likewise; unused slots point to the spare
    active      int32 [n_sites]                  number of slots in use
    keep        int32 [n_sites]                  part of a row of `store` that belongs to the site, or -1
    wanted      int32 [1]                        whether any raw rows are wanted in this pass
    fired       int64 [n_sites (+ 1)]            runs of each tap, and of the SAE: proves that the op was not compiled away

    They are module buffers only so that `to` and `repr` work. They are not part of any model's state dict.
    """

    board: Tensor
    store: Tensor
    weight: Tensor
    bias: Tensor
    jump: Tensor
    activation: Tensor
    columns: Tensor
    active: Tensor
    keep: Tensor
    wanted: Tensor
    fired: Tensor

    def __init__(
        self,
        *,
        n_sites: int,
        kept: list[int],
        d: int,
        width: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        n_features: int = 0,
    ) -> None:
        super().__init__()
        self.d, self.width, self.n_columns = d, width, width + 2 * n_features
        places = torch.full((n_sites,), -1, dtype=torch.int32)
        for place, site in enumerate(kept):
            places[site] = place
        tensors = {
            "board": torch.full((max_rows, self.n_columns + 1), torch.nan),
            "store": torch.zeros((max_rows, max(len(kept), 1) * d) if kept else (1, d), dtype=dtype),
            "weight": torch.zeros(n_sites, d, width),
            "bias": torch.zeros(n_sites, width),
            "jump": torch.zeros(n_sites, width),
            "activation": torch.zeros(n_sites, width, dtype=torch.int64),
            "columns": torch.full((n_sites, width), self.n_columns, dtype=torch.int64),
            "active": torch.zeros(n_sites, dtype=torch.int32),
            "keep": places,
            "wanted": torch.zeros(1, dtype=torch.int32),
            "fired": torch.zeros(n_sites + (n_features > 0), dtype=torch.int64),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(device), persistent=False)

    def tap(self, site: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Read one site: `hidden` [n, d], or the sum of `hidden` and `residual`."""
        torch.ops.actscope.tap(hidden, residual, self.board, self.store, *self._bank(), self.fired, site)

    def _bank(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.jump, self.activation, self.columns, self.active, self.keep, self.wanted


class SaeBuffers(torch.nn.Module):
    """An SAE's encoder on the model's device: weight float32 [d, m]; bias, threshold [m]; pre_bias [d].

    The `places` strongest features of each row go to the columns of `TapBuffers.board` after the scores.
    """

    weight: Tensor
    bias: Tensor
    pre_bias: Tensor
    threshold: Tensor

    def __init__(self, encoder: SaeEncoder, places: int, device: torch.device) -> None:
        super().__init__()
        self.places = places
        self.k = min(places, encoder.k) if encoder.k else places
        self.activation, self.normalisation = ENCODERS[encoder.activation], encoder.normalisation
        for name in ("weight", "bias", "pre_bias", "threshold"):
            self.register_buffer(name, torch.from_numpy(getattr(encoder, name)).to(device), persistent=False)

    def encode(self, buffers: TapBuffers, hidden: Tensor, residual: Tensor | None) -> None:
        """Read the SAE's site: `hidden` [n, d], or the sum of `hidden` and `residual`."""
        torch.ops.actscope.encode(
            hidden,
            residual,
            buffers.board,
            buffers.width,
            self.places,
            self.weight,
            self.bias,
            self.pre_bias,
            self.threshold,
            self.activation,
            self.k,
            self.normalisation,
            buffers.fired,
            len(buffers.fired) - 1,
        )


def _tap_cpu(
    hidden: Tensor, residual: Tensor | None, board: Tensor, store: Tensor, weight: Tensor, bias: Tensor, jump: Tensor,
    activation: Tensor, columns: Tensor, active: Tensor, keep: Tensor, wanted: Tensor, fired: Tensor, site: int,
) -> None:  # fmt: skip
    """Run the tap on a CPU. The tables can be read there, so a site without readers costs only a few microseconds."""
    n_probes = int(active.numpy()[site])
    place = int(keep.numpy()[site]) if wanted.numpy()[0] else -1
    if n_probes or place >= 0:
        n, d = min(hidden.shape[0], board.shape[0]), hidden.shape[1]
        rows = stream(hidden[:n], None if residual is None else residual[:n])
        if place >= 0:
            store[:n, place * d : (place + 1) * d] = rows
        if n_probes:
            used = (site, slice(n_probes))
            scores = _scores(rows, weight[site, :, :n_probes], bias[used], jump[used], activation[used])
            board[:n].index_copy_(1, columns[used], scores)
    fired.numpy()[site] += 1


def stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """Return the residual stream in the model's dtype: summed in float32 and rounded once, as in vLLM's fused norms."""
    if residual is None:
        return hidden
    if hidden.dtype == torch.float32:
        return hidden + residual
    return (hidden.float() + residual.float()).to(hidden.dtype)


def _scores(rows: Tensor, weight: Tensor, bias: Tensor, jump: Tensor, activation: Tensor) -> Tensor:
    """Return the scores, float32 [n, k]. A NaN score becomes infinity: computed, but not finite."""
    z = torch.addmm(bias, rows.float(), weight)
    codes = activation.numpy()
    if (codes == 1).all():
        z.clamp_(min=0)
    elif codes.any():
        z = activate(z, activation, jump)
    return z.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _tap_cuda(*operands: Any) -> None:
    from actscope.taps import kernels

    kernels.tap_cuda(*operands)


def _encode(
    hidden: Tensor, residual: Tensor | None, board: Tensor, first: int, places: int, weight: Tensor, bias: Tensor,
    pre_bias: Tensor, threshold: Tensor, activation: int, k: int, normalisation: str, fired: Tensor, site: int,
) -> None:  # fmt: skip
    features = board[:, first : first + 2 * places]
    encode_reference(hidden, residual, weight, bias, pre_bias, threshold, activation, features, k, normalisation)
    fired[site].add_(1)


def _surviving(op: Callable[..., None]) -> Callable[..., None]:
    """Wrap an op so that its exceptions are logged once and never reach the model."""

    def survive(*operands: Any) -> None:
        try:
            op(*operands)
        except Exception:
            if op.__name__ not in _reported:
                _reported.add(op.__name__)
                log.exception(
                    "%s failed; what it should have read is not delivered (further ones are counted)", op.__name__
                )

    return survive


def _no_kernel(*operands: Any) -> None:
    """Stand for both ops on all other devices. It does not count in `fired`, so nothing is delivered."""
    if "device" not in _reported:
        _reported.add("device")
        log.error(
            "activations on %s cannot be read, only on cpu and cuda: nothing of them is delivered", operands[0].device
        )


_LIBRARY.impl("tap", _no_kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("encode", _no_kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("tap", _surviving(_tap_cpu), "CPU")
_LIBRARY.impl("tap", _surviving(_tap_cuda), "CUDA")
_LIBRARY.impl("tap", lambda *operands: None, "Meta")
_LIBRARY.impl("encode", _surviving(_encode), "CPU")
_LIBRARY.impl("encode", _surviving(_encode), "CUDA")
_LIBRARY.impl("encode", lambda *operands: None, "Meta")
