"""Forward passes that stop as soon as the last of the selected sites has been read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from actscope.engines.hf.loading import LoadedModel
from actscope.errors import ActscopeError, EngineError
from actscope.sites import Site
from actscope.taps.anatomy import Location
from actscope.taps.rows import RowTaps, tensor_of

#: Callback with the index of a site and its rows [batch * width, d], called while the model runs. It must copy rows it keeps.
TakeRows = Callable[[int, Tensor], None]

#: Exceptions of torch and of transformers' models when a pass fails.
_FAILURES = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, KeyError, AssertionError)


class _Enough(Exception):
    """Raised in the last site's hook to skip the layers above it and the head."""


class Forward:
    """A model with taps at the sites to read. `widths[i]` is the width of the i-th site's rows.

    The constructor runs one pass over a few tokens. It finds the site that fires last, checks that each site fires exactly
    once and gives one row per token (else EngineError), and finds whether rows depend on later tokens (`sees_ahead`). If they
    do not, padding on the right has no influence, and the attention mask is omitted: attention is faster without one.
    """

    def __init__(self, loaded: LoadedModel, places: Mapping[Site, Location]) -> None:
        self._loaded = loaded
        self._taps = RowTaps(places, self._on_tap)
        self._keep: TakeRows = lambda number, rows: None
        self._shape = torch.Size(())
        self._fired: list[int] = []
        self._last: int | None = None
        self.sees_ahead = True
        self.widths = self._look()

    def run(self, input_ids: Tensor, attention_mask: Tensor | None, take: TakeRows) -> None:
        """Run one pass without gradients and without a KV cache.

        Args:
            input_ids: int64 [batch, width], padded on the right.
            attention_mask: int64 [batch, width], 0 at padding; None if there is no padding.
            take: Called once per site with its rows.

        Raises:
            EngineError: The pass failed, or a site did not fire exactly once.
        """
        self._shape, self._keep, self._fired = input_ids.shape, take, []
        given = {"attention_mask": attention_mask} if attention_mask is not None and self.sees_ahead else {}
        self._taps.attach()
        try:
            with torch.inference_mode():
                self._loaded.model(input_ids=input_ids, use_cache=False, **given, **self._loaded.last_logits_only)
        except _Enough:
            pass
        except ActscopeError:
            raise
        except _FAILURES as error:
            shape = " x ".join(map(str, self._shape))
            raise EngineError(f"{self._loaded.name} failed on a batch of {shape} tokens: {error}") from error
        finally:
            self._taps.detach()
            self._keep = lambda number, rows: None
        self._check_fired()

    def _look(self) -> list[int]:
        """Run a trial pass over two sequences that share their first four tokens. Returns the width of each site's rows."""
        vocabulary = int(self._loaded.config.vocab_size)
        drawn = torch.randint(vocabulary, (2, 8), generator=torch.Generator().manual_seed(0))
        drawn[1, :4] = drawn[0, :4]
        seen: dict[int, Tensor] = {}
        self.run(drawn.to(self._loaded.device), None, lambda number, rows: seen.__setitem__(number, rows.clone()))
        self._last = self._fired[-1]
        self.sees_ahead = not all(_alike(*rows.reshape(2, 8, -1)[:, :4]) for rows in seen.values())
        return [seen[number].shape[1] for number in range(len(self._taps.sites))]

    def _on_tap(self, number: int, value: object) -> None:
        self._fired.append(number)
        self._keep(number, self._rows_of(number, value))
        if number == self._last:
            raise _Enough

    def _rows_of(self, number: int, value: object) -> Tensor:
        found = tensor_of(value)
        n = self._shape.numel()
        if found.ndim < 2 or found.shape[:-1] not in (self._shape, torch.Size((n,))):
            raise EngineError(
                f"{self._taps.sites[number]}: expected a row for each of {' x '.join(map(str, self._shape))} tokens, found a "
                f"tensor of shape {tuple(found.shape)}; this module cannot be read row by row"
            )
        return found.reshape(n, found.shape[-1])

    def _check_fired(self) -> None:
        sites = self._taps.sites
        wrong = {str(sites[i]): n for i in range(len(sites)) if (n := self._fired.count(i)) != 1}
        if wrong:
            found = ", ".join(f"{site} {n} times" for site, n in wrong.items())
            raise EngineError(f"{self._loaded.name}: one pass reached {found}; expected every site once")


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * one.abs().max())
