"""The memory of a feed is told before it is taken, and what does not fit is refused with the arithmetic."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from actscope.engines.builtin import NAME
from actscope.engines.hf.loading import load
from actscope.errors import SettingsError, SiteError
from actscope.extraction.contract import ROW_LABEL
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.planning.host_memory import Machine, gigabytes, this_machine
from actscope.feed.planning.memory_estimate import Estimate, check_fits, estimate, fits, rows_of, shape_of
from actscope.feed.planning.model_facts import KNOWN, facts_of
from actscope.feed.planning.presets import PRESETS, as_markdown, feed_settings, overview
from actscope.feed.settings import FeedSettings

DOCS = Path(__file__).parents[2] / "docs"
GB = 10**9
MB = 10**6
SMALL = FeedSettings(buffer_rows=1 << 16, device="cpu")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that may not ask the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@contextmanager
def hub(answers: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine that has these paths and no others; anything but an object is a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0], 404)
            body = b"" if isinstance(found, int) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_what_is_said_of_the_built_in_model_is_what_it_is_when_loaded() -> None:
    """Width, blocks, context and the number of its parameters, out of the config and the heads of its files."""
    loaded, facts = load(NAME), facts_of(NAME)
    assert (facts.width, facts.n_layers, facts.context) == (loaded.d_model, loaded.n_layers, loaded.max_context)
    assert facts.parameters == sum(p.numel() for p in loaded.model.parameters())


def test_a_model_is_looked_at_without_torch() -> None:
    """Which takes seconds to import."""
    code = (
        "import sys; from actscope.feed.planning.memory_estimate import shape_of;"
        "from actscope.feed.settings import FeedSettings;"
        "assert shape_of(FeedSettings()).width == 256; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize(
    ("config", "width", "n_layers"),
    [
        ({"n_embd": 768, "n_layer": 12, "n_positions": 1024}, 768, 12),
        ({"hidden_size": 64, "num_hidden_layers": 3, "torch_dtype": "bfloat16"}, 64, 3),
        ({"model_type": "m", "text_config": {"hidden_size": 32, "num_hidden_layers": 2}, "hidden_size": 9}, 32, 2),
        ({"model_type": "gpt2"}, 768, 12),
    ],
)
def test_configs_of_every_kind_are_read(config: dict[str, object], width: int, n_layers: int, tmp_path: Path) -> None:
    """Old names, multimodal models, and what a config leaves out because it is its architecture's default."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = facts_of(str(tmp_path))
    assert (facts.width, facts.n_layers, facts.parameters) == (width, n_layers, 0)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", '{"model_type": "no such"}', '{"hidden_size": -1}'])
def test_a_config_that_cannot_be_used_is_refused(content: str, tmp_path: Path) -> None:
    """With the model's name, whatever is wrong with it."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path))):
        facts_of(str(tmp_path))


@pytest.mark.parametrize("head", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b'\x0d\0\0\0\0\0\0\0{"a": {"b":1}}'])
def test_a_weight_file_that_cannot_be_read_leaves_the_size_unknown(head: bytes, tmp_path: Path) -> None:
    """A file that lies about its head takes no memory, and the config still counts."""
    (tmp_path / "config.json").write_text('{"n_embd": 8, "n_layer": 2}')
    (tmp_path / "model.safetensors").write_bytes(head)
    assert facts_of(str(tmp_path)).parameters == 0
    assert "not known" in "\n".join(estimate(replace(SMALL, model=str(tmp_path))).lines())


def test_a_model_of_the_hub_is_asked_for_by_two_small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config, and how many parameters it has."""
    answers: dict[str, object] = {
        "/some/model/resolve/main/config.json": {"hidden_size": 96, "num_hidden_layers": 4, "dtype": "bfloat16"},
        "/api/models/some/model": {"safetensors": {"total": 12345}},
    }
    with hub(answers, monkeypatch):
        facts = facts_of("some/model")
    assert (facts.width, facts.n_layers, facts.parameters, facts.dtype) == (96, 4, 12345, "bfloat16")


@pytest.mark.parametrize(("status", "says"), [(404, "no such model"), (401, "log in"), (500, "the hub answers 500")])
def test_errors_of_the_hub_are_reported(status: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not there, one that is gated, and a hub that fails."""
    with (
        hub({"/some/model/resolve/main/config.json": status}, monkeypatch),
        pytest.raises(SettingsError, match=says),
    ):
        facts_of("some/model")


@pytest.mark.usefixtures("offline")
def test_offline_the_given_width_is_used_and_what_is_unknown_is_reported() -> None:
    """Sites that depend on how many blocks there are, and a width that nobody said, are refused with what to do."""
    far = replace(SMALL, model="some/model", width=768, sites="first,3,-1")
    shape = shape_of(far)
    assert (shape.width, shape.n_sites) == (768, 3) and "weights" in shape.unknown
    assert any("not known" in line for line in estimate(far).lines())
    with pytest.raises(SettingsError, match=r"name sites by number"):
        shape_of(replace(far, sites="all"))
    with pytest.raises(SettingsError, match=r"some/model.*--width.*hf download some/model"):
        shape_of(replace(far, width=0))


@pytest.mark.usefixtures("offline")
def test_the_models_of_the_presets_are_known_out_of_reach() -> None:
    """Their memory can be computed without a network."""
    named = {str(preset["model"]) for preset in PRESETS.values() if "model" in preset}
    assert named == set(KNOWN)
    for name in named:
        assert facts_of(name) == KNOWN[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 77}, "expected 77, but rows of actscope/builtin have 256"),
        ({"context": 4096}, "reads at most 2048"),
        ({"model": "./nowhere"}, "no such directory"),
        ({"model": "a b"}, "neither a directory nor a Hugging Face id"),
    ],
)
def test_settings_that_do_not_go_with_the_model_are_refused(change: dict[str, object], says: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(SettingsError, match=says):
        shape_of(replace(SMALL, **change))  # type: ignore[arg-type]


def test_a_block_that_the_model_does_not_have_is_refused() -> None:
    """With those that it has."""
    with pytest.raises(SiteError, match=r"feed sites: '9' lies outside this model, which has layers 0 to 4"):
        shape_of(replace(SMALL, sites="0,9"))


def test_modules_by_their_paths_are_said_to_be_unknown() -> None:
    """Only the loaded model can say whether they are there."""
    shape = shape_of(replace(SMALL, sites="middle,model.layers.*.mlp"))
    assert shape.sites == ("layers.2.resid_post", "model.layers.*.mlp") and "model.layers.*.mlp" in shape.unknown


def test_the_buffer_in_the_estimate_is_what_is_mapped() -> None:
    """To the byte: rows, labels and head, with two sites, and a number of rows that is no multiple of anything."""
    settings = replace(SMALL, buffer_rows=1003, windows=3, sites="first,last", dtype="float16")
    found = estimate(settings)
    with_memory = FeedMemory.create(found.layout)
    assert len(with_memory.bytes) == found.buffer_bytes == sum(part.bytes or 0 for part in found.parts[:3])
    with_memory.close()
    values = 3 * 334 * 2 * 256 * 2 + 3 * 334 * ROW_LABEL.itemsize
    assert values <= found.buffer_bytes <= values + 4096 * (1 + 3 * 3)


def test_what_fits_is_not_refused_and_one_byte_less_is() -> None:
    """Five per cent of what is free are left alone."""
    found = estimate(SMALL)
    enough = int(found.total_bytes / 0.95) + 1
    check_fits(found, Machine(enough, enough))
    with pytest.raises(SettingsError, match="free"):
        check_fits(found, Machine(enough, enough - 100))


def test_a_refusal_has_the_arithmetic_and_the_largest_buffer_that_fits() -> None:
    """Every part is on a line of its own, and with the number that is named the feed does fit."""
    machine = Machine(4 * GB, 3 * GB)
    large = estimate(replace(SMALL, buffer_rows=100_000_000))
    with pytest.raises(SettingsError) as refusal:
        check_fits(large, machine)
    message = str(refusal.value)
    for part in ("rows", "labels", "weights", "pass", "chunk", "processes", "total", "free"):
        assert f"\n    {part} " in message
    assert "100,000,000 rows x 1 site(s) x 256 x 4 bytes" in message and "bfloat16" in message
    (rows,) = re.findall(r"--buffer-rows (\d+)", message)
    assert fits(estimate(replace(SMALL, buffer_rows=int(rows))), machine)
    assert not fits(estimate(replace(SMALL, buffer_rows=int(int(rows) * 1.02))), machine)


def test_where_no_buffer_fits_that_is_said() -> None:
    """The model alone is too much."""
    with pytest.raises(SettingsError, match="no buffer fits beside this model"):
        check_fits(estimate(SMALL), Machine(GB, 100 * MB))


@pytest.mark.parametrize("share", ["10%", "75%", "100%"])
@pytest.mark.parametrize("windows", [2, 16])
def test_a_share_of_memory_always_fits(share: str, windows: int) -> None:
    """Down to machines with little of it."""
    for free in (1100 * MB, 2 * GB, 700 * GB):
        machine = Machine(free, free)
        settings = replace(SMALL, windows=windows)
        rows = rows_of(share, settings, lambda machine=machine: machine)  # type: ignore[misc]
        assert fits(estimate(replace(settings, buffer_rows=rows)), machine)


def test_weights_count_as_float32_on_the_cpu_and_as_they_are_on_the_way_to_a_gpu() -> None:
    """Weights count in the dtype in which transformers loads them by default."""
    shape = shape_of(feed_settings("production", {}, {}))
    sizes = [Estimate(SMALL, shape, on_gpu).parts[3].bytes for on_gpu in (False, True)]
    assert sizes == [4 * 8_190_735_360, 2 * 8_190_735_360]


def memory_files(root: Path, files: dict[str, str]) -> Machine:
    """The machine that these files of /proc and /sys/fs/cgroup describe."""
    files = {"proc/meminfo": "MemTotal: 1000000 kB\nMemFree: 1 kB\nMemAvailable: 800000 kB\n"} | files
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return this_machine(root / "proc", root / "cgroup", root / "huge")


def test_without_a_control_group_what_is_available_counts(tmp_path: Path) -> None:
    """Free memory and what the kernel can give back."""
    machine = memory_files(tmp_path, {})
    assert (machine.free, machine.limit) == (800_000 * 1024, 0) and "MemAvailable" in machine.why


def test_the_limit_of_a_control_group_of_version_2_counts(tmp_path: Path) -> None:
    """Also that of a group further up, and what lies in the page cache can be given back."""
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "cgroup/jobs/mine/memory.max": "max\n",
        "cgroup/jobs/mine/memory.current": "100\n",
        "cgroup/jobs/memory.max": f"{300 * MB}\n",
        "cgroup/jobs/memory.current": f"{150 * MB}\n",
        "cgroup/jobs/memory.stat": f"anon 1\ninactive_file {50 * MB}\n",
    }
    machine = memory_files(tmp_path, files)
    assert (machine.free, machine.limit, machine.used) == (200 * MB, 300 * MB, 100 * MB)
    assert "control group" in machine.why


def test_the_limit_of_a_control_group_of_version_1_counts(tmp_path: Path) -> None:
    """In a container, where the path is the host's and only the mount itself is there; "no limit" is a huge number."""
    files = {
        "proc/self/cgroup": "3:cpu:/\n4:memory:/docker/0123\n0::/\n",
        "cgroup/memory/memory.limit_in_bytes": f"{300 * MB}\n",
        "cgroup/memory/memory.usage_in_bytes": f"{200 * MB}\n",
        "cgroup/memory/memory.stat": f"total_inactive_file {20 * MB}\n",
    }
    assert memory_files(tmp_path, files).free == 120 * MB
    unlimited = {"cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert memory_files(tmp_path, files | unlimited).limit == 0


def test_a_machine_without_proc_is_refused(tmp_path: Path) -> None:
    """With what the feed runs on."""
    with pytest.raises(SettingsError, match="runs on Linux"):
        this_machine(tmp_path)


def test_this_machine_has_memory() -> None:
    """The real one."""
    machine = this_machine()
    assert 0 < machine.free <= machine.available <= machine.total


@pytest.mark.parametrize(
    ("size", "text"), [(34.4 * GB, "34.4 GB"), (4096, "4.1 kB"), (12, "12 bytes"), (2e12, "2.0 TB")]
)
def test_sizes_are_written_as_people_read_them(size: float, text: str) -> None:
    """In powers of ten."""
    assert gigabytes(size) == text


@pytest.mark.usefixtures("offline")
def test_the_table_of_presets_in_the_docs_is_the_computed_one() -> None:
    """For a machine with 1 TB free and a GPU: nobody types it."""
    table = as_markdown(overview(Machine(1000 * GB, 1000 * GB), {"device": "cuda"}, {}))
    assert table in (DOCS / "feed.md").read_text(), f"put this into docs/feed.md:\n{table}"


def test_a_preset_that_does_not_fit_is_shown_all_the_same() -> None:
    """With what the generator would take, and no number of rows where there is room for none."""
    lines = {line.preset: line for line in overview(Machine(4 * GB, 4 * GB), {"device": "cpu"}, {})}
    assert lines["test"].fits and not lines["production"].fits and not lines["large-scale"].fits
    assert (lines["production"].buffer_rows, lines["large-scale"].buffer_rows) == (4 << 20, 0)
