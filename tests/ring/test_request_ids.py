"""Ids that are too long for a ring get a name that fits, that is always the same, and that is found again by what clients see."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from actscope.ring.layout import MAX_REQUEST_ID, request_bytes
from actscope.ring.request_ids import ring_id, ring_ids

TRACES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), min_size=1, max_size=400),
    st.from_regex(r"\A[a-f0-9]{60,130}(-[0-9a-f]{8}|-[0-9]{1,3}){0,2}\Z"),
)


@given(st.text(max_size=400))
def test_every_id_has_a_name_that_fits(request: str) -> None:
    """Whatever a client sends, lone surrogates too; a short one is its own name."""
    name = ring_id(request)
    assert len(request_bytes(name)) <= MAX_REQUEST_ID
    if len(request.encode(errors="replace")) <= MAX_REQUEST_ID and request.isprintable():
        assert name == request


@given(TRACES, st.sampled_from(["", "-01234567"]), st.integers(0, 3))
def test_a_client_finds_its_request_by_the_ids_that_it_sees(trace: str, suffix: str, choice: int) -> None:
    """Of a chat and of a completion; the id of the response, and that of a choice of it. `suffix` is the one that vLLM adds."""
    for response, external in ((f"chatcmpl-{trace}", f"chatcmpl-{trace}"), (f"cmpl-{trace}", f"cmpl-{trace}-{choice}")):
        named = ring_id(external + suffix).removesuffix(suffix)
        assert named in ring_ids(external)
        shown = re.sub(r"-\d{1,6}\Z", "", named) if external != response else named
        assert shown in ring_ids(response) or shown in ring_ids(external) or named == external


def test_long_ids_that_differ_anywhere_have_different_names() -> None:
    """At their start, in the middle, and at their end."""
    long = "a" * 300
    others = ["b" + long[1:], long[:150] + "b" + long[151:], long[:-1] + "b", long + "a"]
    names = {ring_id(f"chatcmpl-{one}-01234567") for one in (long, *others)}
    assert len(names) == 5
    assert all(name.startswith("chatcmpl-") and name.endswith("-01234567") for name in names)
