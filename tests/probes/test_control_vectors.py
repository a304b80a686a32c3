"""Control vectors: what repeng 0.4 wrote is read where repeng found it, and a hostile file is an error of ours."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from support.probes.contrast import N_LAYERS, WIDTH, pairs, tiny_llama, words
from torch import Tensor

from actscope.errors import ProbeError
from actscope.probes import import_probes, load_probe
from actscope.probes.importing import read_control_vector

#: Written by the real repeng: tests/data/make_repeng.py.
REPENG = Path(__file__).parents[1] / "data" / "repeng-0.4.gguf"
STRING, UINT32, INT32, ARRAY, UINT64 = 8, 4, 5, 9, 10
F32, F16, BF16 = 0, 1, 30


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: object) -> bytes:
    packed = text(str(value)) if kind == STRING else value if kind == ARRAY else struct.pack("<I", value)
    assert isinstance(packed, bytes)
    return text(key) + struct.pack("<I", kind) + packed


def described(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


HEAD = [entry("general.architecture", STRING, "controlvector"), entry("controlvector.model_hint", STRING, "llama")]


def gguf(entries: list[bytes], tensors: list[bytes], data: bytes = b"", counts: tuple[int, int] | None = None) -> bytes:
    """A file of version 3, by the format's description."""
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def vector(path: Path, numbers: list[int], count: bytes | None = None, kind: int = F32) -> Path:
    """Directions of width 8, of which the one of number n is n, n + 1, ..."""
    dtype = {F32: np.float32, F16: np.float16}.get(kind, np.float32)
    rows = [np.arange(n, n + 8, dtype=dtype) for n in numbers]
    if kind == BF16:
        rows = [(row.view(np.uint32) >> 16).astype(np.uint16) for row in rows]
    tensors = [described(f"direction.{n}", (8,), kind, 32 * i) for i, n in enumerate(numbers)]
    data = b"".join(row.tobytes().ljust(32, b"\0") for row in rows)
    path.write_bytes(gguf([*HEAD, count or entry("controlvector.layer_count", UINT32, len(numbers))], tensors, data))
    return path


def plain_rows(site: str, texts: list[str]) -> Tensor:
    """Last rows of texts of one length at a site, by a plain hook on the module that gives them."""
    model = tiny_llama()
    kept: list[Tensor] = []
    at = model.model.norm if site == "final_norm" else model.model.layers[int(site.split(".")[1])]
    assert site == "final_norm" or site.endswith(".resid_post")
    at.register_forward_hook(lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(**words()(texts, return_tensors="pt"))
    return kept[0][:, -1].float()


def test_each_direction_of_repeng_is_at_the_site_whose_rows_it_was_found_in() -> None:
    """The first principal component of the pairs' differences, seen by plain hooks; the sign is that of the positive texts."""
    probes = import_probes(REPENG)
    assert [probe.info.site for probe in probes] == ["layers.1.resid_post", "layers.2.resid_post", "final_norm"]
    for probe in probes:
        positive, negative = (plain_rows(probe.info.site, list(side)) for side in zip(*pairs(), strict=True))
        differences = (positive - negative).numpy()
        component = np.linalg.svd(differences - differences.mean(axis=0))[2][0]
        assert abs(component @ probe.weight) == pytest.approx(1.0, abs=1e-4)
        assert np.mean(probe.score(positive.numpy()) > probe.score(negative.numpy())) >= 0.5
        assert (probe.info.activation, probe.info.bias, probe.d) == ("identity", 0.0, WIDTH)


def test_the_last_direction_is_not_the_last_blocks_output() -> None:
    """transformers gives the last hidden state behind the final norm, which is where repeng found its direction."""
    last = import_probes(REPENG)[-1]
    positive, negative = (plain_rows(f"layers.{N_LAYERS - 1}.resid_post", list(s)) for s in zip(*pairs(), strict=True))
    differences = (positive - negative).numpy()
    component = np.linalg.svd(differences - differences.mean(axis=0))[2][0]
    assert abs(component @ last.weight) < 0.999


def test_repengs_own_reader_gives_the_same_numbers() -> None:
    reader = pytest.importorskip("gguf").GGUFReader(REPENG)
    theirs = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for probe in import_probes(REPENG):
        np.testing.assert_array_equal(probe.weight, theirs[f"direction.{probe.id.rpartition('-')[2]}"])


@pytest.mark.parametrize("kind", [F32, F16, BF16])
def test_scale_and_sign_are_untouched(kind: int, tmp_path: Path) -> None:
    probes = read_control_vector(vector(tmp_path / "mood.gguf", [1, 2, 3], kind=kind))
    assert [probe.id for probe in probes] == ["mood-1", "mood-2", "mood-3"]
    assert [probe.weight.tolist() for probe in probes] == [list(range(n, n + 8)) for n in (1, 2, 3)]


def test_the_number_of_layers_decides_which_direction_is_behind_the_final_norm(tmp_path: Path) -> None:
    path = vector(tmp_path / "x.gguf", [3, 4, 7])
    with pytest.raises(ProbeError, match="--layers"):
        read_control_vector(path)
    sites = ["layers.3.resid_post", "layers.4.resid_post"]
    assert [p.info.site for p in read_control_vector(path, n_layers=32)] == [*sites, "layers.7.resid_post"]
    assert [p.info.site for p in read_control_vector(path, n_layers=8)] == [*sites, "final_norm"]
    with pytest.raises(ProbeError, match=r"direction\.7 is of no block"):
        read_control_vector(path, n_layers=7)


def test_llama_cpps_own_directions_are_one_block_earlier(tmp_path: Path) -> None:
    """Its cvector-generator calls the difference of l_out-il direction.(il + 1), and writes the count as int32."""
    path = vector(tmp_path / "x.gguf", [1, 2, 3], entry("controlvector.layer_count", INT32, 3))
    assert [p.info.site for p in read_control_vector(path)] == [f"layers.{n}.resid_post" for n in range(3)]


def test_a_control_vector_is_imported_by_the_command_and_named_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"actscope probe import repeng-0\.4\.gguf"):
        load_probe(REPENG)
    with pytest.raises(ProbeError, match="states its sites"):
        import_probes(REPENG, site="layers.1.resid_post")


GOOD = [described("direction.1", (4,))]
FOUR = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the file ends at byte 0"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "another byte order"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (gguf(HEAD, GOOD, FOUR, (1 << 60, 2)), "more than a control vector has"),
        (gguf(HEAD, GOOD, FOUR, (1, 1 << 60)), "more than a control vector has"),
        (gguf(HEAD, GOOD, FOUR, (1, 60000)), "occurs twice|ends at byte"),
        (gguf([entry("general.architecture", STRING, "llama")], []), "architecture 'llama', a model"),
        (gguf([], GOOD, FOUR), "names no architecture"),
        (gguf([*HEAD, HEAD[0]], GOOD, FOUR), "occurs twice"),
        (gguf(HEAD, [*GOOD, *GOOD], FOUR), "occurs twice|declare more"),
        (gguf(HEAD, [described("direction.1", (1 << 62,))], FOUR), "declare more numbers"),
        (gguf(HEAD, [described("direction.1", (1 << 33, 1 << 33))], FOUR), "declare more numbers"),
        (gguf(HEAD, [described("direction.1", (5,))], FOUR), "the file ends before"),
        (gguf(HEAD, [described("direction.1", (4,), offset=1 << 62)], FOUR), "the file ends before"),
        (gguf(HEAD, [described("direction.1", (2, 2))], FOUR), "of one dimension"),
        (gguf(HEAD, [described("direction.x", (4,))], FOUR), "expected direction"),
        (gguf(HEAD, [described("direction.1", (4,), kind=8)], FOUR), "not quantised"),
        (gguf(HEAD, [described("direction.1", (1,) * 9)], FOUR), "9 dimensions"),
        (gguf(HEAD, [described("other", (4,))], FOUR), "expected directions of one width"),
        (gguf(HEAD, [*GOOD, described("direction.2", (2,), offset=16)], FOUR + bytes(8)), "directions of one width"),
        (gguf(HEAD, GOOD, struct.pack("<4f", 1, float("nan"), 1, 1)), "NaN or infinity"),
        (gguf(HEAD, GOOD, struct.pack("<4f", 1, float("inf"), 1, 1)), "NaN or infinity"),
        (gguf([*HEAD, entry("general.alignment", UINT32, 0)], GOOD, FOUR), "power of two"),
        (gguf([*HEAD, entry("general.alignment", STRING, "32")], GOOD, FOUR), "power of two"),
        (gguf([*HEAD, entry("a", ARRAY, struct.pack("<IQ", UINT64, 1 << 61))], GOOD, FOUR), "more were declared"),
        (gguf([*HEAD, entry("a", ARRAY, struct.pack("<IQ", STRING, 1 << 61))], GOOD, FOUR), "an array declares"),
        (gguf([*HEAD, entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + bytes(99))], GOOD, FOUR), "nested"),
        (gguf([text("general.architecture") + struct.pack("<IQ", STRING, 1 << 62)], GOOD, FOUR), "a string at byte"),
        (gguf([text("k") + struct.pack("<II", 99, 0)], GOOD, FOUR), "unknown type 99"),
    ],
)
def test_a_hostile_file_is_an_error_of_ours_before_anything_is_allocated(raw: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(ProbeError, match=says) as caught:
        import_probes(path)
    assert str(path) in str(caught.value)


def test_a_file_that_ends_early_is_an_error_at_every_length(tmp_path: Path) -> None:
    raw = REPENG.read_bytes()
    for size in range(0, len(raw) - 1, 7):
        (tmp_path / "x.gguf").write_bytes(raw[:size])
        with pytest.raises(ProbeError):
            import_probes(tmp_path / "x.gguf")
