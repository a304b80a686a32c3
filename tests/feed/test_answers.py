"""The types of the feed's JSON answers, against the models that its OpenAPI document is made of."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from support.typed import fields_of, keys_of

from actscope.feed import answers
from actscope.feed.server import schemas

SAME: dict[type, type[BaseModel]] = {
    answers.WindowFacts: schemas.Window,
    answers.BufferFacts: schemas.BufferStats,
    answers.GroupFacts: schemas.Group,
    answers.FeedCounts: schemas.Counts,
    answers.GeneratorFacts: schemas.Generator,
    answers.SiteScale: schemas.Normalisation,
    answers.SiteVectors: schemas.SiteStatistics,
    answers.FeedStats: schemas.Stats,
    answers.FeedAbout: schemas.About,
}


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.__name__)
def test_an_answer_has_the_keys_of_its_schema(kind: type) -> None:
    assert keys_of(kind) == fields_of(SAME[kind])
