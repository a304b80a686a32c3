"""JSON bodies of routes, decoded with limits on their structure, so that no body holds the event loop for long.

Time and memory of a body go with the number of its values, not with its bytes: a long text is cheap, a million keys are not. A
body is therefore counted before it is decoded, and of its objects only the fields that the route's model has are built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import cache
from typing import get_args

import msgspec
from fastapi.routing import APIRoute
from msgspec import Raw
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from actscope.serving.errors import Problem

#: Maximum number of opening brackets and braces of a body, and of commas, those in texts included. There are fewer in a million
#: tokens of text.
_MOST_OPENINGS, _MOST_COMMAS = 1 << 18, 1 << 21
#: Maximum number of commas in the fields that the route's model does not have, and in an object that is a field. The former
#: holds one number for each token of the largest vocabularies (262,144), as in `allowed_token_ids` and `logit_bias`.
_MOST_UNKNOWN, _MOST_INNER = 400_000, 20_000
#: Maximum number of objects in a list of them, such as a chat's messages.
_MOST_OBJECTS = 20_000
#: Bodies up to this size are decoded again by Python's parser if they are malformed, because it tells where.
_EXPLAINED_BYTES = 1 << 20

_items = msgspec.json.Decoder(list[Raw]).decode
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class JsonRoute(APIRoute):
    """Route whose body is decoded by `decode`, for its model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Return the handler, which receives the request as a `JsonRequest`."""
        handler = super().get_route_handler()
        model = getattr(getattr(self.body_field, "field_info", None), "annotation", None)

        async def handle(request: Request) -> Response:
            bounded = JsonRequest(request.scope, request.receive)
            bounded.model = model if isinstance(model, type) and issubclass(model, BaseModel) else None
            return await handler(bounded)

        return handle


class JsonRequest(Request):
    """Request whose `json` has limits.

    Attributes:
        model: Model of the body. Fields that it does not have are not decoded. None: all fields are.
    """

    model: type[BaseModel] | None = None

    async def json(self) -> object:
        """Return the body, decoded for the model. Raises Problem (400) if it is malformed or has too many values."""
        return decode(await self.body(), self.model)


def decode(body: bytes, model: type[BaseModel] | None) -> object:
    """Return a body as Python values.

    Args:
        body: JSON.
        model: Model that will validate the values. If it allows additional fields, these are None here.

    Raises:
        Problem: 400 for a body that is malformed, has a number out of range, or has too many values.
        json.JSONDecodeError: The body is malformed, and small.
    """
    commas = body.count(b",")
    if commas > _MOST_COMMAS or body.count(b"[") + body.count(b"{") > _MOST_OPENINGS:
        raise _too_many("the body has too many values")
    try:
        return _decoded(body, model)
    except _ERRORS as error:
        if len(body) <= _EXPLAINED_BYTES:
            _explain(body)
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error


def _decoded(body: bytes, model: type[BaseModel] | None) -> object:
    if model is None or body.lstrip()[:1] != b"{":
        return msgspec.json.decode(body)
    fields = _known_fields(body, model)
    unknown = body.count(b",") - sum(bytes(raw).count(b",") for raw in fields.values())
    if unknown > _MOST_UNKNOWN:
        raise _too_many(f"the body has {unknown} values in fields that are not known here: at most {_MOST_UNKNOWN}")
    values = {name: _value(name, raw, model) for name, raw in fields.items()}
    return values if model.model_config.get("extra") == "allow" else msgspec.json.decode(body)


def _value(name: str, raw: Raw, model: type[BaseModel]) -> object:
    """Decode a field. Of objects in a list only the fields of their model are decoded."""
    inner = _element(model, name)
    if bytes(raw)[:1] == b"{" and bytes(raw).count(b",") > _MOST_INNER:
        raise _too_many(f"{name}: at most {_MOST_INNER} values", name)
    if inner is None or bytes(raw)[:1] != b"[":
        return msgspec.json.decode(raw)
    items = _items(raw)
    if len(items) > _MOST_OBJECTS:
        raise _too_many(f"{name}: at most {_MOST_OBJECTS} entries, found {len(items)}", name)
    return [_item(item, inner) for item in items]


def _item(item: Raw, model: type[BaseModel]) -> object:
    if bytes(item)[:1] != b"{":
        return msgspec.json.decode(item)
    return {key: msgspec.json.decode(value) for key, value in _known_fields(item, model).items()}


def _known_fields(data: bytes | Raw, model: type[BaseModel]) -> dict[str, Raw]:
    """Return the fields of an object that the model has. msgspec skips all others without building anything."""
    found = _reader(model).decode(data)
    values = {name: getattr(found, name) for name in model.model_fields}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


@cache
def _reader(model: type[BaseModel]) -> msgspec.json.Decoder[msgspec.Struct]:
    fields = [(name, Raw | msgspec.UnsetType, msgspec.UNSET) for name in model.model_fields]
    return msgspec.json.Decoder(msgspec.defstruct(model.__name__, fields))


def _element(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of the objects in a list, if it allows additional fields."""
    field = model.model_fields.get(name)
    inner = next(iter(get_args(field.annotation)), None) if field is not None else None
    if isinstance(inner, type) and issubclass(inner, BaseModel) and inner.model_config.get("extra") == "allow":
        return inner
    return None


def _explain(body: bytes) -> None:
    """Raise json.JSONDecodeError, which has the place of the error, if Python's parser finds one too."""
    try:
        json.loads(body)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        return


def _too_many(message: str, param: str | None = None) -> Problem:
    return Problem(400, message, param=param, code="invalid_value")
