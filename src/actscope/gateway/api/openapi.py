"""OpenAPI document with the schemas of streamed answers, which FastAPI cannot derive."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from actscope.gateway.api import schemas as models

_STREAMED = (models.ChatCompletionChunk, models.Completion, models.Events)


def describe(app: FastAPI) -> None:
    """Add the schemas of streamed answers to `app.openapi()`, so that typed clients can be generated from it."""
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
