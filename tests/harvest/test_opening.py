"""Opening a harvest, batches of it, and checking it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.harvest.workers import crew, quiet
from support.typed import keywords_of, written_hints

from actscope.errors import HarvestDamaged, HarvestError, SettingsError
from actscope.harvest import open_harvest
from actscope.harvest.batches import Batches, BatchOptions
from actscope.harvest.driver import harvest
from actscope.harvest.opening import Harvest
from actscope.harvest.storage import open_storage
from actscope.harvest.verifying import verify

SITE = "layers.0.resid_post"


@pytest.fixture
def opened(place: str) -> Harvest:
    harvest(open_storage(place), crew(place), quiet)
    return open_harvest(place)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    harvest(open_storage(str(tmp_path)), crew(tmp_path), quiet)
    return tmp_path


def test_shards_open_without_a_copy_and_as_safetensors_has_them(out: Path) -> None:
    """Rows and labels are what the safetensors library reads; writing to them leaves the file alone."""
    opened = open_harvest(out)
    assert opened.sites == (SITE, "layers.4.resid_post") and opened.n_shards == 4
    for entry, shard in zip(opened.manifest.shards, opened.shards(), strict=True):
        plain = load_file(out / entry.name)
        assert torch.equal(shard.rows(SITE), plain[SITE]) and shard.n_rows == len(plain["text"])
        assert all(shard.labels(n).tolist() == plain[n].tolist() for n in ("text", "piece", "position", "token_id"))
    shard.rows(SITE).zero_()
    assert verify(open_storage(str(out)), quiet).ok


def test_an_epoch_has_every_row_once(opened: Harvest) -> None:
    """In an order that is none of the shards', the same for the same seed, another in another epoch; from a bucket too."""
    everything = torch.cat([shard.rows(SITE) for shard in opened.shards()])
    batches = list(opened.batches(SITE, 100, seed=3, window=2, epochs=1))
    rows = torch.cat(batches)
    assert [len(batch) for batch in batches[:-1]] == [100] * (len(batches) - 1) and len(rows) == opened.n_rows
    assert not torch.equal(rows, everything)
    assert torch.equal(rows.double().sum(1).sort().values, everything.double().sum(1).sort().values)
    assert torch.equal(torch.cat(list(opened.batches(SITE, 100, seed=3, window=2, epochs=1))), rows)
    two = torch.cat(list(opened.batches(SITE, 100, seed=3, window=2, epochs=2)))
    assert len(two) == 2 * opened.n_rows and not torch.equal(two[opened.n_rows :], rows)


def test_batches_go_on_at_their_place(out: Path) -> None:
    """After any number of batches, over windows and epochs, a new iterator goes on with the very next row."""
    opened = open_harvest(out)
    whole = opened.batches(SITE, 64, seed=1, window=3)
    expected = [next(whole) for _ in range(40)]
    for stop in (0, 1, 7, 25):
        first = opened.batches(SITE, 64, seed=1, window=3)
        for _ in range(stop):
            next(first)
        second = Batches(open_harvest(out), SITE, 64, seed=1, window=3, start=first.state_dict())
        assert all(torch.equal(next(second), batch) for batch in expected[stop : stop + 10])


def test_a_window_of_all_shards_mixes_them_all(out: Path) -> None:
    """Of a large batch, every shard has about its share."""
    opened = open_harvest(out)
    rows = next(opened.batches(SITE, opened.n_rows // 2, window=4))
    shares = [
        sum(bool((row == rows).all(1).any()) for row in shard.rows(SITE)) / shard.n_rows for shard in opened.shards()
    ]
    assert all(0.35 < share < 0.65 for share in shares)


def test_what_cannot_be_asked_of_a_harvest_is_said(out: Path, tmp_path: Path) -> None:
    opened = open_harvest(out)
    with pytest.raises(SettingsError, match=r"this harvest has layers\.0"):
        opened.batches("layers.1.resid_post", 8)
    with pytest.raises(HarvestError, match="no harvest here"):
        open_harvest(tmp_path / "nowhere")
    (out / "manifest.json").rename(out / "manifest.old")
    with pytest.raises(HarvestError, match="not finished"):
        open_harvest(out)


def test_damage_is_found_and_named(out: Path) -> None:
    """A changed byte, a shorter file, a missing one, an edited receipt and manifest: each is a problem, and a stray is none."""
    storage = open_storage(str(out))
    shards = sorted((out / "shards").iterdir())
    (out / "shards/000009-stray.safetensors").write_bytes(b"")
    assert verify(storage, quiet).strays == ["shards/000009-stray.safetensors"] and verify(storage, quiet).ok
    changed = bytearray(shards[0].read_bytes())
    changed[-1] ^= 1
    shards[0].write_bytes(changed)
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    shards[2].unlink()
    receipt = out / "receipts/000003.json"
    receipt.write_bytes(receipt.read_bytes().replace(b'"rows":', b'"rows":1', 1))
    found = verify(storage, quiet)
    said = "\n".join(found.problems)
    assert not found.ok and "000000" in said and "has changed" in said and "is missing" in said
    assert "000003" in said and "does not match the receipts" in said
    opened = open_harvest(out)
    for number in (1, 2):
        with pytest.raises(HarvestDamaged, match="expected"):
            opened.shard(number)


def test_names_that_lead_elsewhere_are_refused(out: Path) -> None:
    """A manifest cannot make a reader open a file outside the place."""
    manifest = out / "manifest.json"
    name = open_harvest(out).manifest.shards[0].name
    manifest.write_bytes(manifest.read_bytes().replace(name.encode(), b"shards/../../../etc/passwd"))
    with pytest.raises(HarvestDamaged, match="is not the name of a shard"):
        open_harvest(out)


def test_a_header_that_lies_is_refused(out: Path) -> None:
    """Offsets beyond the file, other shapes, and a header of absurd size are damage, not memory errors."""
    from actscope.harvest.shards.reading import ShardRows

    opened = open_harvest(out)
    entry = opened.manifest.shards[0]
    data = bytearray((out / entry.name).read_bytes())
    for wrong in (b"\xff" * 8 + data[8:], data.replace(b'"F32"', b'"F16"', 1), b"", b"{}"):
        with pytest.raises(HarvestDamaged):
            ShardRows(bytearray(wrong), opened.plan, entry.rows, "here")


def test_the_keywords_of_batches_are_those_of_its_class() -> None:
    """`Harvest.batches` types what it passes on; its types may not drift from the signature of `Batches`."""
    assert written_hints(BatchOptions) == keywords_of(Batches.__init__)
