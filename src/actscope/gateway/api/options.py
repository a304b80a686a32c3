"""What a request asks the engine to record of it: `rows`, `full_prompt` and `keep` of its `actscope` object."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from actscope.errors import SiteError
from actscope.serving.errors import Problem
from actscope.sites import select

#: Where vLLM takes a request's options for the plugin; the values there are text.
XARGS = "vllm_xargs"
_KEY = "actscope"


@dataclass(frozen=True, slots=True)
class Options:
    """None stands for what the client did not say."""

    rows: bool | str | None = None
    full_prompt: bool | None = None
    keep: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def wants_mark(self) -> bool:
        """Whether an engine that takes no such options has to be asked to keep the request."""
        return self.keep is not None or self.rows not in (None, False)


def check_sites(options: Options, n_layers: int) -> None:
    """Raise a 400 when `rows` selects sites that the model does not have, or in a way that cannot be read."""
    if isinstance(options.rows, str):
        try:
            select(options.rows, n_layers)
        except SiteError as error:
            raise _refusal("rows", str(error)) from error


def mark_body(options: Options, wait_seconds: float) -> bytes:
    """The mark that stands for the options at an engine that records whole requests; 400 for a choice of sites."""
    if isinstance(options.rows, str):
        message = "this engine keeps the sites that it was started with: send true, or leave it out"
        raise _refusal("rows", message, "not_supported")
    return msgspec.json.encode({"why": options.keep or "asked for by the request", "wait": wait_seconds})


def into_xargs(fields: dict[str, msgspec.Raw], options: Options) -> msgspec.Raw:
    """The request's `vllm_xargs` with the options in it, beside what the client has put there itself."""
    raw = fields.get(XARGS)
    xargs = msgspec.json.decode(raw) if raw is not None else None
    if xargs is not None and not isinstance(xargs, dict):
        raise Problem(400, f"{XARGS}: expected an object", param=XARGS, code="invalid_value")
    own = _decoded((xargs or {}).get(_KEY))
    merged = msgspec.json.encode({**own, **options.given}).decode()
    return msgspec.Raw(msgspec.json.encode({**(xargs or {}), _KEY: merged}))


def _decoded(text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    param = f"{XARGS}.{_KEY}"
    try:
        found = msgspec.json.decode(text if isinstance(text, str) else b"")
    except msgspec.DecodeError as error:
        raise Problem(400, f"{param}: expected the text of a JSON object", param=param, code="invalid_value") from error
    if not isinstance(found, dict):
        raise Problem(400, f"{param}: expected the text of a JSON object", param=param, code="invalid_value")
    return found


def _refusal(name: str, message: str, code: str = "invalid_value") -> Problem:
    return Problem(400, f"actscope.{name}: {message}", param=f"actscope.{name}", code=code)
