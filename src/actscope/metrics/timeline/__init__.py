"""The timeline of a token: each gap between two tokens as named parts that sum to it, and one sentence that says why."""

from __future__ import annotations
