"""Texts are numbered, found in any file, and known by what they say."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.engines.builtin.text import generate
from actscope.errors import MissingExtra, SettingsError
from actscope.extraction.dataset_files import check_json
from actscope.extraction.texts import open_texts

TEXTS = ["one", "", "three €", "line\u2028separator\x0bstays\x85here", " spaces "]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares goes to the test's own directory, and the hub is not asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def lines(path: Path) -> None:
    path.write_text("".join(text + "\n" for text in TEXTS))


def zipped_lines(path: Path) -> None:
    with gzip.open(path, "wt") as file:
        file.write("".join(text + "\n" for text in TEXTS))


def json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))


def json_list(path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in TEXTS]))


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), path, row_group_size=2)


def arrow(path: Path) -> None:
    with pa.ipc.new_file(str(path), pa.schema([("text", pa.string())])) as file:
        file.write_table(pa.table({"text": TEXTS}), max_chunksize=2)


def saved(path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path), num_shards=2)


def saved_splits(path: Path) -> None:
    train = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": train, "test": train.select([0])}).save_to_disk(str(path))


WAYS: dict[str, Callable[[Path], None]] = {
    "a.txt": lines, "a.txt.gz": zipped_lines, "a.jsonl": json_lines, "a.json": json_list, "a.parquet": parquet,
    "a.arrow": arrow, "saved": saved, "splits": saved_splits,
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_the_same_texts_are_the_same_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    """Number, order, empty texts, odd line ends and the fingerprint, which depends on no path and no time."""
    WAYS[name](tmp_path / name)
    texts = open_texts(str(tmp_path / name))
    assert len(texts) == len(TEXTS)
    assert texts.read([4, 0, 3, 0]) == [TEXTS[4], TEXTS[0], TEXTS[3], TEXTS[0]]
    assert texts.read(range(5)) == TEXTS
    assert texts.read([]) == []
    assert texts.fingerprint == "0f361dabb61b1b026bfd09117fb9bb2b"


def test_a_directory_or_a_glob_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    """Folders in it too, and nothing that is no text."""
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / "b" / "2.txt").write_text("two\n")
    (tmp_path / "data" / "a1.txt").write_text("one\n")
    (tmp_path / "data" / "README.md").write_text("no text")
    (tmp_path / "data" / "c.txt").write_text("three\n")
    directory, everything = open_texts(str(tmp_path / "data")), open_texts(str(tmp_path / "data" / "**" / "*.txt"))
    assert directory.read(range(3)) == ["one", "two", "three"]
    assert everything.read(range(3)) == directory.read(range(3))
    assert open_texts(str(tmp_path / "data" / "[ab]*.txt")).read([0]) == ["one"]


def test_nulls_and_absent_fields_are_empty_texts(tmp_path: Path) -> None:
    """Nulls and absent fields are empty texts, and the numbers of the others do not change."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"other": 1}\n{"text": "b"}\n')
    (tmp_path / "b.txt").write_text("a\n\n\nb\n")
    texts = open_texts(str(tmp_path / "a.jsonl"))
    assert texts.read(range(4)) == ["a", "", "", "b"]
    assert texts.fingerprint == open_texts(str(tmp_path / "b.txt")).fingerprint


def test_a_limit_takes_the_first_texts(tmp_path: Path) -> None:
    """The first texts equal a file of only these; a limit beyond the end changes nothing."""
    lines(tmp_path / "all.txt")
    (tmp_path / "two.txt").write_text("one\n\n")
    two, first = open_texts(str(tmp_path / "two.txt")), open_texts(str(tmp_path / "all.txt"), n=2)
    assert first.read(range(len(first))) == ["one", ""]
    assert first.fingerprint == two.fingerprint
    assert len(open_texts(str(tmp_path / "all.txt"), n=99)) == 5


@settings(max_examples=25, deadline=None)
@given(
    one=st.lists(st.text(max_size=3), min_size=1, max_size=4),
    other=st.lists(st.text(max_size=3), min_size=1, max_size=4),
)
def test_other_texts_have_another_fingerprint(one: list[str], other: list[str]) -> None:
    """The same letters divided into other texts have another fingerprint too."""
    from actscope.extraction.tables import TextColumn

    both = [TextColumn("a", datasets.Dataset.from_dict({"text": texts}), "text").fingerprint for texts in (one, other)]
    assert (both[0] == both[1]) == (one == other)


def test_a_file_that_changed_in_place_has_another_fingerprint(tmp_path: Path) -> None:
    """Nothing of the old texts is kept under its name."""
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    before = open_texts(str(tmp_path / "a.txt"))
    assert before.read([1]) == ["two"]
    (tmp_path / "a.txt").write_text("one\nTWO\n")
    after = open_texts(str(tmp_path / "a.txt"))
    assert after.read([1]) == ["TWO"]
    assert after.fingerprint != before.fingerprint


def test_another_column_is_chosen_by_its_name(tmp_path: Path) -> None:
    """Only the named column is read."""
    (tmp_path / "a.jsonl").write_text('{"content": "a", "n": 1}\n')
    texts = open_texts(str(tmp_path / "a.jsonl"), column="content")
    assert texts.read([0]) == ["a"]


@pytest.mark.parametrize(
    ("files", "spec", "options", "says"),
    [
        ({}, "absent.txt", {}, "no such file"),
        ({}, "nowhere/*.jsonl", {}, "no files there"),
        ({"folder/readme.md": "x"}, "folder", {}, "no files there; expected some that end in .txt"),
        ({"a.csv": "x"}, "a.csv", {}, "a.csv: expected a name that ends in"),
        ({"d/a.txt": "x", "d/b.jsonl": "{}"}, "d", {}, "several kinds .json, text."),
        ({"empty.txt": ""}, "empty.txt", {}, "there is no text in it"),
        ({"bad.jsonl": "{nonsense"}, "bad.jsonl", {}, "JSON parse error"),
        ({"a.jsonl": '{"a": "x", "b": 1}'}, "a.jsonl", {}, "no column 'text': its columns are a, b"),
        ({"a.jsonl": '{"text": 3}'}, "a.jsonl", {}, "holds int64, expected strings"),
        ({"a.jsonl": '{"text": ["x"]}'}, "a.jsonl", {}, "holds List, expected strings"),
        ({"a.txt": "x"}, "a.txt", {"split": "validation"}, "validation"),
        ({"a.txt": "x"}, "a.txt", {"n": 0}, "at least one"),
    ],
)
def test_what_is_not_there_is_said(
    files: dict[str, str], spec: str, options: dict[str, object], says: str, tmp_path: Path
) -> None:
    """A SettingsError that names what was asked for, and what there is."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=says) as caught:
        open_texts(str(tmp_path / spec), **options)  # type: ignore[arg-type]
    assert spec in str(caught.value)


def test_splits_of_a_saved_dataset_are_named(tmp_path: Path) -> None:
    """One split of several, or the only one; another is refused."""
    saved_splits(tmp_path / "two")
    assert len(open_texts(str(tmp_path / "two"), split="test")) == 1
    with pytest.raises(SettingsError, match="no split 'dev': expected one of train, test"):
        open_texts(str(tmp_path / "two"), split="dev")
    saved(tmp_path / "one")
    with pytest.raises(SettingsError, match="no split 'dev': expected one of train"):
        open_texts(str(tmp_path / "one"), split="dev")


@pytest.mark.parametrize("spec", ["nobody/nothing-of-this-name", "nothing-of-this-name:config"])
def test_an_id_that_cannot_be_had_is_a_settings_error(spec: str) -> None:
    """A dataset that cannot be fetched, also offline, is a SettingsError."""
    with pytest.raises(SettingsError, match="nothing-of-this-name"):
        open_texts(spec)


def test_datasets_is_quiet_and_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No bar and no line, not even of what fails."""
    lines(tmp_path / "a.txt")
    (tmp_path / "bad.jsonl").write_text("{nonsense")
    verbosity = datasets.logging.get_verbosity()
    open_texts(str(tmp_path / "a.txt"))
    with pytest.raises(SettingsError):
        open_texts(str(tmp_path / "bad.jsonl"))
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()
    assert datasets.logging.get_verbosity() == verbosity
    assert logging.getLogger("huggingface_hub").level < logging.CRITICAL


def test_without_datasets_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the built-in texts do not need it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(open_texts("builtin", n=3)) == 3
    with pytest.raises(MissingExtra, match=r"actscope\[feed\]"):
        open_texts("corpus.txt")


@pytest.mark.parametrize(("spec", "kind"), [("builtin", "mixed"), ("builtin:story", "story"), ("builtin:chat", "chat")])
def test_the_built_in_texts_are_had_by_number(spec: str, kind: str) -> None:
    """Text i is the generator's first for seed i, in whatever order one asks."""
    texts = open_texts(spec)
    assert len(texts) == 100_000
    assert texts.read([99_999, 3]) == [next(generate(i, kind, "train")).text for i in (99_999, 3)]


def test_the_built_in_texts_are_known_by_kind_split_and_number() -> None:
    """Their fingerprint is the same each time, and another for each of these."""
    ways = [("builtin", {}), ("builtin", {"n": 7}), ("builtin:story", {}), ("builtin", {"split": "heldout"})]
    found = [open_texts(spec, **options).fingerprint for spec, options in ways]  # type: ignore[arg-type]
    assert len(set(found)) == len(ways)
    assert found[0] == open_texts("builtin").fingerprint


@pytest.mark.parametrize(
    ("spec", "split", "says"),
    [("builtin:poem", "train", "builtin:story"), ("builtin", "test", "expected one of train, heldout")],
)
def test_built_in_texts_that_there_are_not_are_refused(spec: str, split: str, says: str) -> None:
    """The message names those that there are."""
    with pytest.raises(SettingsError, match=says):
        open_texts(spec, split=split)


def test_a_built_in_text_beyond_the_last_is_refused() -> None:
    """Numbers -1 and n are refused."""
    for number in (-1, 3):
        with pytest.raises(IndexError):
            open_texts("builtin", n=3).read([number])


#: Damaged files by name: what they hold, and what is said of them. Each is read, and none ends the process.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "null.jsonl": (b"null\n", "expected an object in each record, found null"),
    "blanks.jsonl": (b"\n \t\n \t" + b" " * 300 + b"null\n", "found null"),
    "later.jsonl": (b'{"text": "a"}\n\r  null\r', "found null"),
    "null.json": (b"\xef\xbb\xbfnull", "found null"),
    "list.json": (b'[null, {"text": "a"}]', "found null"),
    "empty.jsonl": (b"", "there is no text in it"),
    "null.jsonl.gz": (gzip.compress(b'{"text": "a"}\nnull\n'), "found null"),
    "latin.jsonl": (b'{"text": "\xff\xfe"}\n', "utf-8"),
    "latin.txt": (b"\xff\xfe\n", "utf-8"),
    "deep.jsonl": (b"[" * 100_000, "nested too deeply|truncated"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n')[:-9], "ended before|EOFError"),
    "cut.jsonl.xz": (b"\xfd7zXZ\x00\xff", "ended before|EOFError"),
    "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd\xff", "."),
    "cut.txt.gz": (b"\x1f\x8b\xff", "ended before|EOFError"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    """By a SettingsError when it is opened or read, and by no signal and no error of a library."""
    data, says = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SettingsError, match=says) as caught:
        open_texts(str(tmp_path / name)).read([0])
    assert name in str(caught.value)


@pytest.mark.parametrize("piece", range(4 << 20, (4 << 20) + 12))
def test_a_null_record_is_found_across_the_pieces_that_are_read(piece: int, tmp_path: Path) -> None:
    """The word and the blanks before it may lie in two pieces."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (piece - 20) + b'"}\n   null\n')
    with pytest.raises(SettingsError, match="found null"):
        check_json([path])


def test_records_with_nulls_in_them_are_read(tmp_path: Path) -> None:
    """In fields, in text, and in a list of texts."""
    (tmp_path / "a.jsonl").write_text('{"text": "null", "n": null}\n{"text":\tnull, "n": 1}\n')
    assert open_texts(str(tmp_path / "a.jsonl")).read([0, 1]) == ["null", ""]
    (tmp_path / "b.json").write_text('["a", null]')
    assert open_texts(str(tmp_path / "b.json")).read([0, 1]) == ["a", ""]


def test_text_that_is_no_utf8_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Parquet and Arrow files hold bytes that nobody has decoded before."""
    raw = [None, pa.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little")), pa.py_buffer(b"\xff\xfe")]
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 1, raw)}), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=r"a\.parquet.*utf-8"):
        open_texts(str(tmp_path / "a.parquet")).read([0])


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"5", b"null", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_saved_dataset_whose_state_is_malformed_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    """The file is named."""
    saved(tmp_path / "d")
    (tmp_path / "d" / name).write_bytes(data)
    with pytest.raises(SettingsError, match=f"{name}: expected what `save_to_disk` of datasets writes"):
        open_texts(str(tmp_path / "d"))


@pytest.mark.parametrize(
    "name", ["../a/data-00000-of-00002.arrow", "/etc/passwd", "x/../../../etc/passwd", "", "file:x"]
)
def test_a_saved_dataset_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    """The files of a state, and the splits of a dataset, may not lie elsewhere."""
    saved(tmp_path / "a")
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (tmp_path / "a" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SettingsError, match="expected names of files below its folder"):
        open_texts(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(SettingsError, match="expected names of files below its folder"):
        open_texts(str(tmp_path / "b"))
