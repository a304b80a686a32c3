"""The OpenAPI document, with the shapes of what is streamed, which FastAPI does not see."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from actscope.gateway.api import schemas as models

_STREAMED = (models.ChatCompletionChunk, models.Completion, models.Events)


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` describe the streams too, so that a typed client can be generated from it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["schemas"] = {**_schemas(), **document["components"]["schemas"]}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _schemas() -> dict[str, Any]:
    wanted = [(model, "serialization") for model in _STREAMED]
    _, document = models_json_schema(wanted, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    found: dict[str, Any] = document["$defs"]
    return found
