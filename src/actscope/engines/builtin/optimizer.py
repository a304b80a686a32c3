"""Muon for the matrices of the layers, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps along the nearest orthogonal matrix to the
momentum. `torch.optim.Muon` does that in bf16, which takes 10 s per step on a CPU without bf16 units; this one uses fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return approximately `U V'` of `matrix = U S V'`, with all singular values between about 0.7 and 1.2."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)).matmul(x)
    return x.T if tall else x


class Optimizer:
    """Both optimizers behind one `step(scale)`; `scale` in 0..1 multiplies the two peak learning rates."""

    def __init__(self, inside: nn.Module, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        self._matrices = [p for p in inside.parameters() if p.ndim == 2]
        chosen = {id(p) for p in self._matrices}
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._muon_rate, self._adam_rate = muon_rate, adam_rate
        others = [p for p in model.parameters() if id(p) not in chosen]
        self._adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every parameter from its gradient, and clear the gradients."""
        for p, momentum in zip(self._matrices, self._momenta, strict=True):
            assert p.grad is not None, "every matrix takes part in every pass"
            momentum.lerp_(p.grad, 1 - MOMENTUM)
            update = orthogonal(p.grad.lerp(momentum, MOMENTUM))
            rate = self._muon_rate * scale * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.mul_(1 - 0.02 * rate).add_(update, alpha=-rate)
            p.grad = None
        self._adam.param_groups[0]["lr"] = self._adam_rate * scale
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments by flat names, as `load` takes them."""
        state = {f"muon.{i}": momentum for i, momentum in enumerate(self._momenta)}
        for i, moments in self._adam.state_dict()["state"].items():
            state |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the moments from the names and tensors that `state` returned."""
        for i, momentum in enumerate(self._momenta):
            momentum.copy_(state[f"muon.{i}"])
        kept = self._adam.state_dict()
        n = len(self._adam.param_groups[0]["params"])
        names = ("step", "exp_avg", "exp_avg_sq")
        kept["state"] = {i: {name: state[f"adam.{i}.{name}"] for name in names} for i in range(n)}
        self._adam.load_state_dict(kept)
