"""Sites of a vLLM model that are in this process, and the hooks that read them.

Most of vLLM's decoder layers return (hidden, residual) and leave the addition to the next norm: their residual stream is that
sum. Others return the stream itself, alone or beside a tensor that nobody adds. Shapes and signatures do not tell them apart, so
a site is read as `actscope.engines.vllm.truth` has found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.engines.vllm.truth.check import Tap, is_placeholder
from actscope.engines.vllm.truth.reading import arguments, output_argument, results
from actscope.sites import OUTER, Site, select
from actscope.taps.anatomy import locate
from actscope.taps.text_model import blocks

#: Called with (hidden, residual), each [n, d]. The row is their sum, or `hidden` alone if `residual` is None.
Read = Callable[[Tensor, Tensor | None], None]


def sites_here(model: nn.Module, selection: str) -> tuple[Site, ...]:
    """Return the selected sites whose modules are in this process; the others belong to other pipeline stages.

    Raises SiteError for a site that no stage has.
    """
    if not selection:
        return ()
    missing = [name for name, module in model.named_modules(remove_duplicate=False) if is_placeholder(module)]
    chosen = select(selection, len(blocks(model)))
    return tuple(site for site in chosen if not _elsewhere(model, site, missing))


def _elsewhere(model: nn.Module, site: Site, missing: Sequence[str]) -> bool:
    """Return whether a site is, or lies inside, one of the `missing` modules. Those have no children to search."""
    if site.is_module:
        return any(f"{site.point}.".startswith((f"{name}.", f"{name}:")) for name in missing)
    if site.point in OUTER:
        return bool(missing) and is_placeholder(locate(model, site).module)
    layers = blocks(model)
    return site.layer is not None and site.layer < len(layers) and is_placeholder(layers[site.layer])


def attach(tap: Tap, read: Read) -> RemovableHandle:
    """Hook `read` to a site, from the next forward pass on."""
    module, reading = tap.location.module, tap.reading
    if tap.location.scale != 1:
        read = _scaled(read, tap.location.scale)
    if tap.location.side == "input":

        def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            found = reading.of(arguments(args, kwargs))
            if found is not None:
                read(*found)

        return module.register_forward_pre_hook(before, with_kwargs=True)
    out = output_argument(module)
    if out:  # it may return nothing, and write to an argument

        def behind(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            found = reading.of(results(output, arguments(args, kwargs), out))
            if found is not None:
                read(*found)

        return module.register_forward_hook(behind, with_kwargs=True)

    def after(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        found = reading.of(results(output, {}))
        if found is not None:
            read(*found)

    return module.register_forward_hook(after)


def _scaled(read: Read, scale: float) -> Read:
    return lambda hidden, residual: read(hidden * scale, None if residual is None else residual * scale)
