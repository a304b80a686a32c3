"""The older activation server's client, against a feed; `test_coming_from.py` has the calls of its examples."""

from __future__ import annotations

import pytest
from support.feed.feeding import TOKEN, feeding

from actscope.compat import ActivationClient
from actscope.errors import SettingsError


def test_its_other_calls_answer_as_there() -> None:
    """Lists, health, a refresh, and both names of the number of rows."""
    with feeding() as running, ActivationClient(f"{running.url}/", TOKEN) as client:
        assert client.wait_for_data(min_samples=10) is True
        found = client.get_activations(batch_size=3)
        assert found["shape"] == [3, 256] and len(found["activations"]) == found["num_samples"] == 3
        assert client.health_check()["status"] in ("serving", "filling")
        assert client.get_server_stats()["counts"]["granted_rows"] >= 3
        assert client.refresh_buffer() >= 0
        with pytest.raises(SettingsError, match="batch_size 0"):
            client.get_activations_tensor(batch_size=0)
        with ActivationClient(running.url, "not the token") as other, pytest.raises(SettingsError, match="token"):
            other.wait_for_data(1, timeout=5)


def test_waiting_for_a_server_that_is_not_there_ends_with_false() -> None:
    with ActivationClient("http://127.0.0.1:9", TOKEN) as client:
        assert client.wait_for_data(1, timeout=0) is False
