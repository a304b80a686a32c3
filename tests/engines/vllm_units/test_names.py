"""Names of requests stay what they are, and their memory does not grow with the number of requests."""

from __future__ import annotations

import pytest

from actscope.engines.vllm.sidecar.names import _REMEMBERED, Names


def test_a_request_of_many_passes_keeps_its_name_whatever_comes_meanwhile() -> None:
    """More others than are remembered come and go; it is still the same request to the recording."""
    names = Names(())
    assert names.name("long-0000abcd") == "long"
    for i in range(_REMEMBERED + 100):
        names.name(f"r{i}-0000abcd")
        names.end(f"r{i}-0000abcd")
    assert names.name("long-0000abcd") == "long" and names.engine_id("long") == "long-0000abcd"
    assert len(names) == 1 and len(names._ended) == _REMEMBERED
    assert len(names._engine_ids) == _REMEMBERED + 1


def test_no_two_requests_share_a_name() -> None:
    """Not with each other, not with those of an earlier recorder, and not long after the first one has ended."""
    names = Names(["old"])
    assert names.name("old-00000001") == "old-00000001"
    assert names.name("a-00000001") == "a" and names.name("a-00000002") == "a-00000002"
    names.end("a-00000001")
    assert names.name("a-00000001") == "a", "a message about it may come late"
    for i in range(_REMEMBERED + 1):
        names.name(f"r{i}-0000abcd")
        names.end(f"r{i}-0000abcd")
    assert names.name("a-00000003") == "a-00000003"
    names.resume("b-00000001", "b")
    assert names.name("b-00000001") == "b" and names.name("b-00000002") == "b-00000002"


def test_few_new_names_count_as_used() -> None:
    """The filter of used names has a fixed size; after 200,000 requests hardly an id in ten thousand is taken for a used one."""
    names = Names(f"r{i}" for i in range(200_000))
    fresh = [names.name(f"new{i}-0000abcd") for i in range(10_000)]
    assert sum(name.endswith("-0000abcd") for name in fresh) <= 1 and len(set(fresh)) == 10_000


def test_an_id_that_comes_again_names_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM appends nothing to them, clients may repeat ids: of a request that has ended, or of an earlier recording."""
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    names = Names(["old"])
    assert names.name("a", begins=True) == "a" and names.name("a", begins=True) == names.name("a") == "a"
    names.end("a")
    assert names.name("a") == "a", "a message about it may come late"
    assert names.name("a", begins=True) == names.name("a") == "a:2" and names.engine_id("a:2") == "a"
    names.end("a")
    assert names.name("a", begins=True) == "a:3" and names.name("old", begins=True) == "old:2"
