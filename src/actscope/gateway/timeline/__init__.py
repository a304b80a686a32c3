"""The timeline of a request's tokens: what the gateway stamps, and the answer that is made of it."""

from __future__ import annotations
