"""`actscope::tap`: the one op of compiled models and CUDA graphs: scores, raw rows, and the proof that it ran.

It is defined without `torch.library.custom_op`, whose checks cost some 15 µs a call, which a decoder layer of a small model
feels. Its operands are whole buffers (`TapBuffers`) and an integer; changing what lies in the buffers never compiles again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actscope.taps.ops import activate

_LIBRARY: Any = torch.library.Library("actscope", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "tap(Tensor hidden, Tensor? residual, Tensor(a!) board, Tensor(b!) store, Tensor weight, Tensor bias, Tensor jump, "
    "Tensor activation, Tensor columns, Tensor active, Tensor keep, Tensor wanted, Tensor(c!) fired, int site) -> ()"
)


class TapBuffers(torch.nn.Module):
    """Everything that the taps of one model read and write, on the model's device, for as long as the model lives.

    board       float32 [max_rows, width + 1]    scores; NaN is "not computed"; the last column is a spare
    store       dtype [max_rows, n_kept * d]     raw rows, one site beside the other
    weight      float32 [n_sites, d, width]      probes of each site in its first slots; bias, jump float32, activation
                                                 int64, columns int64 [n_sites, width] likewise; unused slots point to the spare
    active      int32 [n_sites]                  slots in use
    keep        int32 [n_sites]                  which part of a row of `store` is the site's, or -1
    wanted      int32 [1]                        whether any raw rows are wanted in this pass
    fired       int64 [n_sites]                  how often each tap has run: the proof that it was not compiled away

    They are buffers of a module only so that `to` and `repr` work; they are no part of any model's state.
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
    ) -> None:
        super().__init__()
        self.d, self.width, self.n_kept = d, width, len(kept)
        places = torch.full((n_sites,), -1, dtype=torch.int32)
        for place, site in enumerate(kept):
            places[site] = place
        tensors = {
            "board": torch.full((max_rows, width + 1), torch.nan),
            "store": torch.zeros((max_rows, max(len(kept), 1) * d) if kept else (1, d), dtype=dtype),
            "weight": torch.zeros(n_sites, d, width),
            "bias": torch.zeros(n_sites, width),
            "jump": torch.zeros(n_sites, width),
            "activation": torch.zeros(n_sites, width, dtype=torch.int64),
            "columns": torch.full((n_sites, width), width, dtype=torch.int64),
            "active": torch.zeros(n_sites, dtype=torch.int32),
            "keep": places,
            "wanted": torch.zeros(1, dtype=torch.int32),
            "fired": torch.zeros(n_sites, dtype=torch.int64),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(device), persistent=False)

    def tap(self, site: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Read one site: `hidden` [n, d], or the sum of it and `residual`."""
        torch.ops.actscope.tap(hidden, residual, self.board, self.store, *self._bank(), self.fired, site)

    def _bank(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.jump, self.activation, self.columns, self.active, self.keep, self.wanted


def _tap_cpu(
    hidden: Tensor, residual: Tensor | None, board: Tensor, store: Tensor, weight: Tensor, bias: Tensor, jump: Tensor,
    activation: Tensor, columns: Tensor, active: Tensor, keep: Tensor, wanted: Tensor, fired: Tensor, site: int,
) -> None:  # fmt: skip
    """On a CPU the tables can be looked at, so that a site that nobody reads costs a few microseconds."""
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
    """The residual stream, in the model's dtype: the sum is made in float32 and rounded once, as vLLM's fused norms do."""
    if residual is None:
        return hidden
    if hidden.dtype == torch.float32:
        return hidden + residual
    return (hidden.float() + residual.float()).to(hidden.dtype)


def _scores(rows: Tensor, weight: Tensor, bias: Tensor, jump: Tensor, activation: Tensor) -> Tensor:
    """float32 [n, k]; a score that is not a number becomes infinity: computed, but not finite."""
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


_LIBRARY.impl("tap", _tap_cpu, "CPU")
_LIBRARY.impl("tap", _tap_cuda, "CUDA")
_LIBRARY.impl("tap", lambda *operands: None, "Meta")
