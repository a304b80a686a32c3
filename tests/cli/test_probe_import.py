"""actscope probe import: other tools' files become probes that are listed, tested and loaded like our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.errors import ProbeError, SettingsError
from actscope.probes import load_probe, load_probes

REPENG = Path(__file__).parents[1] / "data" / "repeng-0.4.gguf"


def test_a_control_vector_becomes_probe_files_and_says_what_was_assumed(tmp_path: Path) -> None:
    arguments = ["probe", "import", str(REPENG), "--name", "happy", "--out", str(tmp_path), "--model", "me/llm"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0 and "--layers" in done.stderr
    assert [(p["id"], p["site"], p["model"]) for p in json.loads(done.stdout)] == [
        ("happy-1", "layers.1.resid_post", "me/llm"),
        ("happy-2", "layers.2.resid_post", "me/llm"),
        ("happy-3", "final_norm", "me/llm"),
    ]
    assert [probe.id for probe in load_probes(tmp_path)] == ["happy-1", "happy-2", "happy-3"]
    of_more = CliRunner().invoke(app, [*arguments, "--layers", "9"])
    assert of_more.exit_code == 0 and "--layers" not in of_more.stderr
    assert load_probe(tmp_path / "happy-3.safetensors").info.site == "layers.3.resid_post"


def test_a_json_vector_is_written_in_our_format(tmp_path: Path) -> None:
    (tmp_path / "enc_3_calm.json").write_text(json.dumps({"vector": [1.0, -2.0], "encoder_bias": 0.5}))
    arguments = ["probe", "import", str(tmp_path / "enc_3_calm.json"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (probe,) = load_probes(tmp_path / "out")
    assert (probe.id, probe.info.site, probe.info.bias, probe.weight.tolist()) == (
        "calm", "layers.3.resid_post", 0.5, [1.0, -2.0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("m.joblib", r"skops\.io\.dump"),
        ("m.skops", "give --site"),
        ("m.pt", "is a pickle"),
        ("m.gguf", "ends at byte 0"),
    ],
)
def test_a_file_that_is_not_imported_says_what_to_do(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    error = CliRunner().invoke(app, ["probe", "import", str(tmp_path / name), "--out", str(tmp_path / "out")]).exception
    assert isinstance(error, ProbeError) and not (tmp_path / "out").exists()
    with pytest.raises(ProbeError, match=says):
        raise error


def test_a_place_that_cannot_be_written_to_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["probe", "import", str(tmp_path / "absent.gguf"), "--out", str(tmp_path / "file" / "probes")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, SettingsError) and f"--out {tmp_path}/file/probes" in str(error)
