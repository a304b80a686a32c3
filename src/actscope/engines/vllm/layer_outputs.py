"""Locations of sites in vLLM's models, and how a row is read at each.

Most of vLLM's decoder layers return (hidden, residual) and leave the addition to the next norm: their residual stream is that
sum. Others (GPT-2, OPT, Falcon, Granite) return the stream itself. The second output of a final norm is not part of its row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.errors import SiteError
from actscope.sites import Site, select
from actscope.taps.anatomy import Location, locate
from actscope.taps.text_model import blocks

#: Called with (hidden, residual). The row is their sum, or `hidden` alone if `residual` is None.
Read = Callable[[Tensor, Tensor | None], None]


def sites_here(model: nn.Module, selection: str) -> tuple[Site, ...]:
    """Return the selected sites whose modules are in this process; the others belong to other pipeline stages.

    Raises SiteError for a site that no stage has.
    """
    if not selection:
        return ()
    missing = [name for name, module in model.named_modules(remove_duplicate=False) if _is_placeholder(module)]
    chosen = select(selection, len(blocks(model)))
    return tuple(site for site in chosen if not _elsewhere(model, site, missing))


def _elsewhere(model: nn.Module, site: Site, missing: Sequence[str]) -> bool:
    """Return whether a site is, or lies inside, one of the `missing` modules. Those have no children to search."""
    if site.is_module:
        return any(f"{site.point}.".startswith((f"{name}.", f"{name}:")) for name in missing)
    layers = blocks(model)
    if site.layer is not None and site.layer < len(layers) and _is_placeholder(layers[site.layer]):
        return True
    return _is_placeholder(locate(model, site).module)


def _is_placeholder(module: nn.Module) -> bool:
    """Return whether a module is vLLM's placeholder for a module of another pipeline stage."""
    return type(module).__name__ == "PPMissingLayer"


def attach(model: nn.Module, site: Site, read: Read) -> RemovableHandle:
    """Hook `read` to `site`, from the next forward pass on. Raises SiteError if the site cannot be read."""
    location = locate(model, site)
    if location.side == "input":
        return _attach_input(site, location, read)
    pair = _stream_of if site.point == "resid_post" else _first_of

    def hook(module: nn.Module, args: object, output: object) -> None:
        found = pair(output)
        if found is not None and found[0].dim() == 2:  # with several parallel streams (3-d), none is the row
            read(*found)

    return location.module.register_forward_hook(hook)


def _attach_input(site: Site, location: Location, read: Read) -> RemovableHandle:
    names = list(inspect.signature(location.module.forward).parameters)
    if "hidden_states" not in names:
        raise SiteError(f"{site}: {type(location.module).__name__} takes no hidden_states, but {', '.join(names)}")
    at, residual_at = names.index("hidden_states"), names.index("residual") if "residual" in names else None

    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        hidden = _argument(args, kwargs, at, "hidden_states")
        residual = None if residual_at is None else _argument(args, kwargs, residual_at, "residual")
        if isinstance(hidden, Tensor) and hidden.dim() == 2:
            read(hidden, residual)

    return location.module.register_forward_pre_hook(hook, with_kwargs=True)


def _argument(args: Sequence[Any], kwargs: dict[str, Any], at: int, name: str) -> Any:
    return args[at] if at < len(args) else kwargs.get(name)


def _stream_of(output: object) -> tuple[Tensor, Tensor | None] | None:
    """Return (hidden, residual) from a block's output; None unless it is a tensor or (tensor, tensor or None)."""
    if isinstance(output, Tensor):
        return output, None
    if not isinstance(output, tuple) or not output or not isinstance(output[0], Tensor):
        return None
    if len(output) == 1 or output[1] is None:
        return output[0], None
    same = isinstance(output[1], Tensor) and output[1].shape == output[0].shape
    return (output[0], output[1]) if same and len(output) == 2 else None


def _first_of(output: object) -> tuple[Tensor, None] | None:
    first = output[0] if isinstance(output, tuple) and output else output
    return (first, None) if isinstance(first, Tensor) else None
