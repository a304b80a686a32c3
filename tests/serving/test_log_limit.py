"""Strangers cannot fill the log of a server with malformed requests."""

from __future__ import annotations

import logging

import pytest

from actscope.gateway.server import open_server
from actscope.gateway.settings import GatewaySettings
from actscope.serving.log_limit import ClientWarnings

INVALID, UPGRADE = "Invalid HTTP request received.", "Unsupported upgrade request."


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, message, None, None)


def test_each_kind_of_warning_is_logged_once_a_minute_with_the_count_of_the_others() -> None:
    now = [1000.0]
    limit = ClientWarnings(lambda: now[0])
    assert [limit.filter(record(INVALID)) for _ in range(100)] == [True] + [False] * 99
    assert limit.filter(record(UPGRADE))
    assert not limit.filter(record(UPGRADE))
    now[0] += 61
    again = record(INVALID)
    assert limit.filter(again)
    assert again.getMessage() == f"{INVALID} (99 more in the 61 s before)"
    now[0] += 61
    assert limit.filter(quiet := record(INVALID))
    assert quiet.getMessage() == INVALID


def test_other_records_all_pass() -> None:
    limit = ClientWarnings()
    assert all(limit.filter(record("Exception in ASGI application\n")) for _ in range(3))


def test_every_server_has_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn's logger carries it, once, however many servers a process opens."""
    for _ in range(2):
        open_server(GatewaySettings(port=0))._socket.close()
    logger = logging.getLogger("uvicorn.error")
    assert sum(isinstance(one, ClientWarnings) for one in logger.filters) == 1
