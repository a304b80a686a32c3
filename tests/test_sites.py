"""The selection grammar."""

from __future__ import annotations

import pytest

from actscope.errors import SiteError
from actscope.sites import Site, select


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("0,7,3", ["layers.0.resid_post", "layers.3.resid_post", "layers.7.resid_post"]),
        ("-1", ["layers.11.resid_post"]),
        ("first,middle,last", ["layers.0.resid_post", "layers.6.resid_post", "layers.11.resid_post"]),
        ("2-6:2", ["layers.2.resid_post", "layers.4.resid_post", "layers.6.resid_post"]),
        ("9-11.mlp_out", ["layers.9.mlp_out", "layers.10.mlp_out", "layers.11.mlp_out"]),
        ("final_norm, 3.attn_out, embed", ["embed", "layers.3.attn_out", "final_norm"]),
        ("layers.4.resid_pre,4,4", ["layers.4.resid_pre", "layers.4.resid_post"]),
    ],
)
def test_a_selection_names_sites_in_model_order_without_repeats(selection: str, expected: list[str]) -> None:
    assert [site.name for site in select(selection, 12)] == expected


def test_all_selects_every_layer() -> None:
    assert len(select("all", 12)) == 12


@pytest.mark.parametrize("selection", ["", "12", "-13", "3.nowhere", "x", "5-2", "1;2", "3.mlp_out.extra"])
def test_what_cannot_be_read_or_lies_outside_is_an_error_that_names_it(selection: str) -> None:
    with pytest.raises(SiteError, match="names no site" if not selection else selection.split(";")[0]):
        select(selection, 12)


def test_a_site_name_reads_back() -> None:
    for name in ("embed", "final_norm", "layers.0.resid_pre", "layers.31.mlp_out"):
        assert Site.parse(name).name == name


def test_several_points_are_taken_where_only_layers_are_named() -> None:
    found = [site.name for site in select("1,0.resid_pre", 12, ("mlp_out", "attn_out"))]
    assert found == ["layers.0.resid_pre", "layers.1.attn_out", "layers.1.mlp_out"]


@pytest.mark.parametrize("name", ["model.layers.0.mlp", "layers.0.mlp", "layers.0.mlp_ou", "layers.0.mlp_out:in", "0"])
def test_parsing_a_name_stays_strict_about_modules(name: str) -> None:
    """A misspelled point must not pass for the path of a module."""
    with pytest.raises(SiteError, match="expected layers"):
        Site.parse(name)
    assert Site(None, name).is_module
    assert not Site.parse("embed").is_module
