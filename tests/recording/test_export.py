"""Exports are read back with the libraries that people have, and are what was computed."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import zarr
from safetensors import safe_open
from safetensors.torch import load_file
from support.recordings.made import rows_of, step_of
from support.recordings.real_model import Truth, record, run_model

from actscope.codecs import to_float32
from actscope.errors import MissingExtra, RecordingError, SettingsError, SiteError
from actscope.frames import Frame
from actscope.recording.export import FORMATS, ExportOptions, Selection, choose_sites, export
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

SMALL = ExportOptions(shard_bytes=40_000, chunk_bytes=8_000)
SITE = "layers.2.resid_post"


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Recording]:
    """What a real model has computed, and the recording of it."""
    truth = run_model(dtype=request.param)
    return truth, Recording.open(record(truth, tmp_path_factory.mktemp("rec") / "run.acts"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    truth = run_model(dtype=torch.bfloat16)
    return Recording.open(record(truth, tmp_path_factory.mktemp("rec") / "run.acts"))


def check_labels(truth: Truth, found: Any, requests: list[str]) -> None:
    """Columns by name, and each row's request by its number."""
    for column in ("position", "token_id", "flags", "step"):
        np.testing.assert_array_equal(np.asarray(found(column)), truth.meta(column), column)
    assert [requests[i] for i in np.asarray(found("request"))] == truth.requests()


def test_safetensors_shards_hold_every_row_in_its_own_dtype_and_the_index_names_them_all(
    ran: Any, tmp_path: Path
) -> None:
    truth, recording = ran
    report = export(recording, tmp_path / "out", "safetensors", options=SMALL)
    index = json.loads((report.path / "rows.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert all((report.path / name).stat().st_size < 44_000 for name in files)
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        loaded = load_file(report.path / name)
        assert {tensor for tensor, at in index["weight_map"].items() if at == name} == set(loaded)
        tensors |= loaded
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    requests = json.loads((report.path / "export.json").read_text())["requests"]
    for site in truth.sites:

        def whole(column: str, site: str = site) -> torch.Tensor:
            return torch.cat(
                [tensors[name] for name in sorted(tensors) if name.startswith(site) and name.endswith(f"/{column}")]
            )

        assert whole("rows").dtype == truth.rows(site).dtype
        assert torch.equal(whole("rows"), truth.rows(site))
        check_labels(truth, whole, requests)


def test_safetensors_are_aligned_and_the_library_opens_them_lazily(ran: Any, tmp_path: Path) -> None:
    truth, recording = ran
    path = export(recording, tmp_path / "out", "safetensors").path / "rows-00001-of-00001.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    sizes = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "F16": 2}
    for name, tensor in header.items():
        if name != "__metadata__":
            assert (8 + length + tensor["data_offsets"][0]) % sizes[tensor["dtype"]] == 0
    with safe_open(path, "pt") as file:
        part = file.get_slice(f"{SITE}/00000/rows")[5:9]
    assert torch.equal(part, truth.rows(SITE)[5:9])


def test_zarr_arrays_are_chunked_zstd_and_what_was_computed(ran: Any, tmp_path: Path) -> None:
    truth, recording = ran
    root: Any = zarr.open_group(export(recording, tmp_path / "out.zarr", "zarr", options=SMALL).path, mode="r")
    assert root.attrs["requests"] == recording.requests
    for site in truth.sites:
        rows = root[site]["rows"]
        assert root[site].attrs["dtype"] == str(truth.rows(site).dtype).removeprefix("torch.")
        assert rows.metadata.zarr_format == 3 and "zstd" in str(rows.compressors).lower()
        assert rows.nchunks > 1
        np.testing.assert_array_equal(rows[:].astype(np.float32), truth.rows(site).float().numpy())
        check_labels(truth, lambda column, site=site: root[site][column][:], recording.requests)


def test_parquet_rows_are_fixed_size_lists_with_the_texts_of_their_tokens(ran: Any, tmp_path: Path) -> None:
    truth, recording = ran
    path = export(recording, tmp_path / "out", "parquet", options=SMALL).path
    for site in truth.sites:
        file = pyarrow.parquet.ParquetFile(path / f"{site}.parquet")
        table = file.read()
        assert file.metadata.num_row_groups > 1
        kind = table.schema.field("row").type
        assert pyarrow.types.is_fixed_size_list(kind) and kind.list_size == 64
        assert str(kind.value_type) == ("halffloat" if truth.rows(site).dtype == torch.float16 else "float")
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["row"].chunks])
        np.testing.assert_array_equal(flat.reshape(-1, 64).astype(np.float32), truth.rows(site).float().numpy())
        for column in ("position", "token_id", "flags", "step"):
            np.testing.assert_array_equal(table[column].to_numpy(), truth.meta(column))
        assert table["request"].to_pylist() == truth.requests()
        assert table["text"].to_pylist() == [recording.texts[i] for i in truth.meta("token_id").tolist()]
        assert json.loads(table.schema.metadata[b"actscope"])["site"] == site


def test_sites_of_different_widths_and_dtypes_are_one_table_of_parquet_exactly(tmp_path: Path) -> None:
    """One schema for all files, or no tool reads the folder: lists of any size, and the widest of the float dtypes."""
    rows: dict[str, np.ndarray] = {
        "a": np.arange(30, dtype=np.float32).reshape(5, 6) / 7,
        "b": np.arange(20, dtype=np.float16).reshape(5, 4),
    }
    step = step_of(1, [("r", 0, 5)])
    with Recorder.create(tmp_path / "rec", RecordingSpec(("a", "b"), codec="none")) as recorder:
        recorder.write(step, [Frame(site, values) for site, values in rows.items()])
    report = export(Recording.open(tmp_path / "rec"), tmp_path / "out", "parquet")
    assert report.stored_as == {"a": "float32", "b": "float32"}
    table = pyarrow.parquet.read_table(report.path)
    for site, values in rows.items():
        mine = [row for row, of in zip(table["row"].to_pylist(), table["site"].to_pylist(), strict=True) if of == site]
        np.testing.assert_array_equal(np.array(mine, np.float32), values.astype(np.float32))


def test_an_export_of_parquet_is_replaced_like_others(tmp_path: Path, real: Recording) -> None:
    """Its description has another name, which readers of folders skip."""
    export(real, tmp_path / "out", "parquet", Selection(("0",)))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"layers.0.resid_post.parquet", "_export.json", ".huggingface.yaml"}
    export(real, tmp_path / "out", "npy", options=ExportOptions(force=True))
    assert (tmp_path / "out/export.json").exists() and not (tmp_path / "out/_export.json").exists()


def test_npy_files_are_mapped_by_numpy_without_pickle(ran: Any, tmp_path: Path) -> None:
    truth, recording = ran
    path = export(recording, tmp_path / "out", "npy", options=SMALL).path
    for site in truth.sites:
        rows = np.load(path / f"{site}.npy", mmap_mode="r", allow_pickle=False)
        np.testing.assert_array_equal(rows.astype(np.float32), truth.rows(site).float().numpy())
        labels = np.load(path / f"{site}.labels.npy", allow_pickle=False)
        check_labels(truth, lambda column, labels=labels: labels[column], recording.requests)


@pytest.mark.parametrize("form", ["npy", "zarr", "parquet"])
def test_bfloat16_can_be_had_as_its_16_bits(real: Recording, tmp_path: Path, form: str) -> None:
    """Where a form has no bfloat16 the choice is float32, exactly, or the bits; both are said in export.json."""
    for choice in ("float32", "uint16"):
        options = ExportOptions(bf16=choice)
        path = export(real, tmp_path / choice, form, Selection((SITE,)), options).path
        said = json.loads((path / ("_export.json" if form == "parquet" else "export.json")).read_text())["sites"][SITE]
        assert (said["dtype"], said["stored_as"]) == ("bfloat16", choice)
        if form == "npy":
            rows = np.load(path / f"{SITE}.npy")
        elif form == "zarr":
            root: Any = zarr.open_group(path, mode="r")
            rows = root[SITE]["rows"][:]
        else:
            rows = (
                pyarrow.parquet.read_table(path / f"{SITE}.parquet")["row"]
                .combine_chunks()
                .flatten()
                .to_numpy()
                .reshape(-1, 64)
            )
        assert rows.dtype.name == choice
        wide = to_float32(rows, "bfloat16") if choice == "uint16" else rows
        np.testing.assert_array_equal(wide, real[SITE][:])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_sites_requests_and_positions_choose_rows(real: Recording, tmp_path: Path, form: str) -> None:
    chosen = Selection(("3",), ("talk/1", "story"), slice(4, 12))
    report = export(real, tmp_path / "out", form, chosen)
    assert report.rows == {"layers.3.resid_post": 16}
    if form == "npy":
        labels = np.load(report.path / "layers.3.resid_post.labels.npy")
        assert sorted(set(labels["position"].tolist())) == list(range(4, 12))
        assert {real.requests[i] for i in labels["request"]} == {"talk/1", "story"}
        mask = np.isin(real.labels()["request"], [real.requests.index(r) for r in chosen.requests])
        mask &= (real.labels()["position"] >= 4) & (real.labels()["position"] < 12)
        np.testing.assert_array_equal(
            np.load(report.path / "layers.3.resid_post.npy"), real["layers.3.resid_post"][:][mask]
        )


def test_sites_are_named_in_full_by_pattern_and_by_the_grammar(real: Recording) -> None:
    assert choose_sites(real, []) == real.sites
    assert choose_sites(real, ["layers.1.resid_post, layers.0.resid_post"]) == real.sites[:2]
    assert choose_sites(real, ["layers.[23].*"]) == real.sites[2:]
    assert choose_sites(real, ["last", "0"]) == (real.sites[0], real.sites[3])
    with pytest.raises(SiteError, match=r"no site 'layers.9.resid_post'; it has layers.0"):
        choose_sites(real, ["layers.9.resid_post"])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_an_export_replaces_nothing_without_force(real: Recording, tmp_path: Path, form: str) -> None:
    path = tmp_path / "out"
    export(real, path, form, Selection(("0",)))
    with pytest.raises(RecordingError, match=r"exists already; .*--force"):
        export(real, path, form)
    assert export(real, path, form, options=ExportOptions(force=True)).rows.keys() == set(real.sites)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear")
    with pytest.raises(RecordingError, match="not an earlier export"):
        export(real, foreign, form, options=ExportOptions(force=True))
    assert (foreign / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_an_export_that_fails_leaves_nothing_behind(
    real: Recording, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(real, tmp_path / "out", form, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_its_total(real: Recording, tmp_path: Path) -> None:
    for form in FORMATS:
        seen: list[tuple[str, int, int]] = []
        export(real, tmp_path / form, form, options=SMALL, progress=lambda *said, seen=seen: seen.append(said))
        assert len(seen) > (form != "packets") and seen[-1][1] == seen[-1][2]
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_unknown_forms_and_empty_choices_are_refused(real: Recording, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="no export format 'pickle'; there are safetensors, zarr, parquet, npy, packets"
    ):
        export(real, tmp_path / "out", "pickle")
    with pytest.raises(RecordingError, match="no rows are chosen"):
        export(real, tmp_path / "out", "npy", Selection(positions=slice(100_000, None)))
    with pytest.raises(RecordingError, match="no request 'nobody'"):
        export(real, tmp_path / "out", "npy", Selection(requests=("nobody",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "package"), [("zarr", "zarr"), ("parquet", "pyarrow")])
def test_a_missing_library_is_named_with_its_install_line(
    real: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"needs {package}.*actscope\[export\]"):
        export(real, tmp_path / "out", form)


def test_a_sites_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    sites = ("../../up", "..", "a/b", "a%2Fb", ".hidden")
    step = step_of(1, [("r", 0, 5)])
    with Recorder.create(tmp_path / "rec", RecordingSpec(sites, codec="none")) as recorder:
        recorder.write(step, [Frame(site, rows_of(step, site)) for site in sites])
    recording = Recording.open(tmp_path / "rec")
    for form in ("npy", "zarr", "parquet", "safetensors"):
        export(recording, tmp_path / "in" / form, form)
    assert {p.name for p in tmp_path.iterdir()} == {"rec", "in"}
    loaded = {p.name: np.load(p) for p in (tmp_path / "in/npy").glob("*.npy") if ".labels." not in p.name}
    assert len(loaded) == len(sites)
    for site in sites:
        assert any(np.array_equal(rows, rows_of(step, site)) for rows in loaded.values())


def test_memory_is_bounded_by_chunks_not_by_the_recording(tmp_path: Path) -> None:
    """A child exports 192 MiB of rows to each form; its memory grows by far less: 64 MiB of decoded blocks, and chunks."""
    path = tmp_path / "big.acts"
    rows = np.random.default_rng(0).standard_normal((6144, 1024)).astype(np.float32)
    with Recorder.create(path, RecordingSpec(("embed",), codec="none")) as recorder:
        for number in range(8):
            step = step_of(number + 1, [("r", len(rows) * number, len(rows))])
            recorder.write(step, [Frame("embed", rows.copy())])
    code = """
import sys
from pathlib import Path
from actscope.recording.export import ExportOptions, Selection, export
from actscope.recording.reading.recording import Recording
recording, to, form = Recording.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
export(recording, to / "warm", form, Selection(positions=slice(0, 10)))
def peak():  # of this very program, unlike ru_maxrss, which outlives exec
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
export(recording, to / "out", form, options=ExportOptions(chunk_bytes=1 << 20))
print(peak() - before)
"""
    grown = {}
    for form in FORMATS:
        (tmp_path / form).mkdir()
        command = [sys.executable, "-c", code, str(path), str(tmp_path / form), form]
        grown[form] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) >> 10
        shutil.rmtree(tmp_path / form)
    assert all(mib < 130 for mib in grown.values()), grown
