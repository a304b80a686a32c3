"""A trace for ui.perfetto.dev: requests, passes, tokens, scores and what the kernel saw, on one clock."""

from __future__ import annotations
