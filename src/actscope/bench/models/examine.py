"""Examines one architecture of transformers: builds it, captures its rows in every case, and holds them against the reference."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actscope.bench.models.architectures import Architecture, build
from actscope.bench.models.cases import (
    CASES,
    LANES,
    RUN,
    SHAPE,
    CannotRun,
    CaseName,
    CaseRun,
    is_encoder_decoder,
    lanes_of,
    reads_images,
    run_plain,
)
from actscope.bench.models.checks import (
    PARTS,
    SiteFinding,
    check_parts,
    check_site,
    disturbed,
    off_by,
    parameters_of,
    rows_at,
    stacked,
)
from actscope.bench.models.reference import ModuleCall, Stream, calls_of, find_stream, watching
from actscope.bench.models.rows import Captured, capturing, offered, reason_for
from actscope.bench.models.verdicts import MatrixEntry, decide, summary_of
from actscope.errors import ActscopeError

_EQUAL = 1e-6


def examine(architecture: Architecture) -> MatrixEntry:
    """Return the result of one architecture with transformers. Nothing but a crash of the process raises."""
    begun = time.perf_counter()
    entry = MatrixEntry(architecture.name, architecture.kind)
    try:
        model = build(architecture)
    except Exception as error:  # a class of transformers may fail in any way
        entry.reason = told("not built", error)
        return entry
    entry.model_class = type(model).__name__
    try:
        with calls_of(model) as calls:
            run_plain(model)
    except Exception as error:
        entry.reason = told("does not run", error)
        return entry
    stream = find_stream(model, calls, SHAPE, _decoder_path(model))
    _Examination(model, entry, calls, stream).run()
    decide(entry)
    entry.seconds = round(time.perf_counter() - begun, 2)
    return entry


def told(what: str, error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{what}: {type(error).__name__}: {text}"[:300]


def _decoder_path(model: nn.Module) -> str:
    """Return the path of the decoder of an encoder-decoder, as transformers names it; "" for other models."""
    get = getattr(model, "get_decoder", None)
    if not is_encoder_decoder(model) or not callable(get):
        return ""
    decoder = get()
    return next((path for path, module in model.named_modules() if module is decoder), "")


class _Examination:
    """The checks of one model, whose results go to its entry."""

    def __init__(
        self, model: nn.Module, entry: MatrixEntry, calls: Sequence[ModuleCall], stream: Stream | None
    ) -> None:
        self._model = model
        self._entry = entry
        self._calls = calls
        self._stream = stream
        self._layers = len(stream.blocks) if stream is not None else _layers_of(model)
        self._sites: list[str] = []
        self._refused: dict[str, str] = {}

    def run(self) -> None:
        """Run every case."""
        self._sites, self._refused = offered(self._model, self._layers)
        for layer in self._stream.idle if self._stream is not None else ():
            own = [site for site in (*self._sites, *self._refused) if site.startswith(f"layers.{layer}.")]
            self._sites = [site for site in self._sites if site not in own]
            self._refused |= dict.fromkeys(own, "the model does not run this block on text alone")
        findings = [SiteFinding(site, "refused", why) for site, why in self._refused.items()]
        if not any(site.endswith("resid_post") for site in self._sites):
            self._entry.add_points(findings)
            return
        for case in CASES:
            if case == "image" and not reads_images(self._model):
                continue
            self._entry.cases[case] = self._case(case, findings)
        self._entry.add_points(findings)

    def _case(self, case: CaseName, findings: list[SiteFinding]) -> str:
        """Run one case without and with the product, and return its result. Findings of the plain pass are collected."""
        try:
            bare = RUN[case](self._model)
        except CannotRun as why:
            return f"cannot: {why}"
        except Exception as error:
            return f"cannot: {told('the model itself fails', error)}"
        try:
            found, captured, ran = self._captured(case)
        except ActscopeError as error:
            return f"refused: {error}"
        except Exception as error:
            return f"wrong: {told('the model fails under the capture', error)}"
        if bare.text is not None and (ran.text is None or not torch.equal(bare.text, ran.text)):
            return "wrong: the generated text is another with the capture"
        if captured.faults:
            return f"wrong: {captured.faults} internal faults: {'; '.join(captured.said)[:200]}"
        if case == "plain":
            found += self._parts(captured, ran, found)
            findings += found
            self._entry.hidden_states = self._table(captured, ran)
        return summary_of(found)

    def _captured(self, case: CaseName) -> tuple[list[SiteFinding], Captured, CaseRun]:
        if self._stream is None:
            with capturing(self._model, self._sites) as (captured, cap), cap.request(list(LANES)):
                ran = RUN[case](self._model)
            return (
                [check_site(captured.rows, site, ran, None, reason_for(site, captured.said)) for site in self._sites],
                captured,
                ran,
            )
        with (
            watching(self._model, self._stream) as watched,
            capturing(self._model, self._sites) as (captured, cap),
            cap.request(list(LANES)),
        ):
            ran = RUN[case](self._model)
        found = []
        for site in self._sites:
            reference = lanes_of(watched.passes, ran, site)
            checked = check_site(captured.rows, site, ran, reference, reason_for(site, captured.said))
            if checked.point in PARTS and checked.status == "unchecked":
                continue  # the sum checks it
            found.append(checked)
        return found, captured, ran

    # --- the plain pass ---------------------------------------------------------------------------------------------------

    def _parts(self, captured: Captured, ran: CaseRun, found: Sequence[SiteFinding]) -> list[SiteFinding]:
        missing = {finding.site for finding in found if finding.status == "refused"}
        delivered = {site for site in self._sites if site not in missing and any(rows_at(captured.rows, site, ran))}
        if self._stream is None:
            return []
        states = [self._states(path) for path in self._stream.blocks]
        findings = check_parts(captured.rows, ran, self._layers, delivered, states)
        return findings + [one for layer in range(self._layers) for one in self._kinds(layer, delivered, captured, ran)]

    def _states(self, block: str) -> list[Tensor]:
        """Return what modules of a block took, as [lanes, positions, d]."""
        assert self._stream is not None
        taken = [
            value
            for call in self._calls
            if call.path == block or call.path.startswith(f"{block}.")
            for value in call.taken[:1]
        ]
        return [value.transpose(0, 1) if self._stream.time_first and value.ndim == 3 else value for value in taken]

    def _kinds(self, layer: int, delivered: set[str], captured: Captured, ran: CaseRun) -> list[SiteFinding]:
        """Check that a block's MLP changes only `mlp_out`, and that its attention or mixer changes its own point."""
        assert self._stream is not None
        parts = [site for point in PARTS if (site := f"layers.{layer}.{point}") in delivered]
        before = f"layers.{layer}.resid_pre"
        if len(parts) < 2 or before not in delivered:
            return []
        block = self._model.get_submodule(self._stream.blocks[layer])
        findings = []
        for changed in ("mlp_out", "attention"):
            parameters = parameters_of(block, changed)
            if not parameters:
                continue
            with (
                disturbed(parameters),
                capturing(self._model, [before, *parts, f"layers.{layer}.resid_post"]) as (again, cap),
                cap.request(list(LANES)),
            ):
                other = RUN["plain"](self._model)
            if self._moved(captured, again, ran, other, before) is not False:
                continue  # parameters are shared with an earlier block
            for site in parts:
                moved = self._moved(captured, again, ran, other, site)
                is_mlp = site.endswith("mlp_out")
                if moved is None:
                    continue
                if changed == "mlp_out" and moved != is_mlp:
                    what = "does not change with the block's MLP" if is_mlp else "changes with the block's MLP"
                    findings.append(SiteFinding(site, "wrong", what))
                elif changed == "attention" and not is_mlp and not moved:
                    findings.append(SiteFinding(site, "wrong", "does not change with the block's attention or mixer"))
        return findings

    @staticmethod
    def _moved(one: Captured, other: Captured, ran: CaseRun, again: CaseRun, site: str) -> bool | None:
        """Return whether rows of a site differ in two captures; None if one of them has none."""
        lanes, later = rows_at(one.rows, site, ran), rows_at(other.rows, site, again)
        if not all(lanes) or not all(later):
            return None
        return any(off_by(new, old) > _EQUAL for old, new in zip(stacked(lanes), stacked(later), strict=True))

    def _table(self, captured: Captured, ran: CaseRun) -> list[list[str]]:
        """Return, for each index of transformers' `hidden_states`, the sites that hold the same rows."""
        try:
            out = run_plain(self._model, output_hidden_states=True)
        except Exception:  # the model does not offer them
            return []
        states = getattr(out, "decoder_hidden_states", None) or getattr(out, "hidden_states", None)
        if not isinstance(states, tuple | list):
            return []
        lanes = {site: rows_at(captured.rows, site, ran) for site in self._sites if not site.endswith(PARTS)}
        known = {site: stacked(rows) for site, rows in lanes.items() if all(rows)}
        return [[site for site, rows in known.items() if _holds(state, rows)] for state in states]


def _holds(state: object, rows: Sequence[Tensor]) -> bool:
    if not isinstance(state, Tensor) or state.ndim != 3:
        return False
    if tuple(state.shape[:2]) == SHAPE[::-1]:
        state = state.transpose(0, 1)
    return all(off_by(row, own) <= _EQUAL for row, own in zip(rows, state, strict=True))


def _layers_of(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return int(getattr(text, "num_hidden_layers", 1) or 1)
