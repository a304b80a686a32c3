"""Play the first hour of a new user, from a wheel, and print how long each step took.

    .venv/bin/python scripts/first_hour.py [--wheel FILE] [--json FILE] [--keep]

The wheel is installed into a new environment with the extra `hf`. Every step then runs there as a user would type it: in a
directory outside the checkout, with a HOME that cannot be written to, without a hub, and as another user where root allows it.
A step that fails is shown with its output, and the script exits 1 after the other steps.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTRA = "hf"
#: Longest time of a step, and of the start of a server.
STEP_S, START_S = 300.0, 180.0
LABELS = 40

CAPTURE = """
import actscope, torch
from actscope.engines.builtin import model_path
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(model_path())
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512,
)
LlamaForCausalLM(config).save_pretrained("tiny")
tokenizer.save_pretrained("tiny")

model = LlamaForCausalLM.from_pretrained("tiny")
inputs = tokenizer("A fox walks through the snow", return_tensors="pt")
with actscope.capture(model, preset="balanced", to="run.acts"):
    model.generate(**inputs, max_new_tokens=16, do_sample=False)
rows = actscope.open("run.acts").rows("layers.1.resid_post", request="r000001")
assert rows.values.shape[1] == 64 and len(rows) >= inputs["input_ids"].shape[1] + 15, rows
"""
EXPORTED = """
from pathlib import Path
from safetensors.numpy import load_file

files = sorted(Path("rows").rglob("*.safetensors"))
assert files and all(len(load_file(file)) for file in files), files
"""
FEED = """
import sys
from actscope.feed import FeedClient

with FeedClient(sys.argv[1], token=sys.argv[2]) as client:
    batch = client.get_activations_tensor(512)
assert batch.shape == (512, 256), batch.shape
"""


class StepFailed(Exception):
    """A step did not do what it should. The message has its output."""


@dataclass(frozen=True)
class Place:
    """Where the steps run: the environment, the user, and the directory."""

    directory: Path
    python: Path
    base: str
    """The Python that makes the environment: one that the user may run."""
    user: int | None
    """User id of the steps; None for the caller's."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a step: few, so that nothing of the checkout or the caller takes part."""
        bare = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        return bare | {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command. Standard error goes where standard output goes."""
        return subprocess.Popen(
            words, cwd=self.directory / "work", env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, user=self.user, group=self.user, extra_groups=[] if self.user else None,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str) -> str:
        """Run a command to its end and return its output. Raises StepFailed unless it exits 0."""
        process = self.start(*words)
        try:
            output, _ = process.communicate(timeout=STEP_S)
        except subprocess.TimeoutExpired as error:
            _end(process, signal.SIGKILL)
            raise StepFailed(f"{' '.join(words)}: not within {STEP_S:.0f} s") from error
        if process.returncode:
            raise StepFailed(f"{words[0]} {words[1]} …: exit code {process.returncode}\n{output[-3000:]}")
        return output

    def actscope(self, *words: str) -> str:
        """Run an actscope command; see `run`."""
        return self.run(str(self.python.parent / "actscope"), *words)

    @contextmanager
    def serving(self, *words: str, marker: str) -> Iterator[list[str]]:
        """Run an actscope command until the block ends, and yield its lines up to the one with the marker."""
        process = self.start(str(self.python.parent / "actscope"), *words)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            yield list(_until(lines, marker, " ".join(words)))
        finally:
            _end(process, signal.SIGINT)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _until(lines: queue.Queue[str | None], marker: str, what: str) -> Iterator[str]:
    seen, end = [], time.monotonic() + START_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise StepFailed(f"{what}: no {marker!r} within {START_S:.0f} s\n{''.join(seen)[-3000:]}") from None
        if line is None:
            raise StepFailed(f"{what}: ended before {marker!r}\n{''.join(seen)[-3000:]}")
        seen.append(line)
        yield line
        if marker in line:
            return


def _end(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to the process, and kill its group when it does not end."""
    with suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _value(lines: list[str], name: str) -> str:
    """Return what an announcement says after a name such as `page`."""
    for line in lines:
        first, _, rest = line.strip().partition(" ")
        if first == name:
            return rest.strip()
    raise StepFailed(f"no {name!r} in what was printed:\n{''.join(lines)}")


def _expect(true: object, what: str) -> None:
    if not true:
        raise StepFailed(what)


def version(place: Place) -> None:
    """Print the version."""
    _expect(place.actscope("--version").startswith("actscope "), "no version")


def doctor(place: Place) -> None:
    """Check the machine: nothing is marked NO."""
    place.actscope("doctor")


def demo(place: Place) -> None:
    """Ask the built-in model one question: its answer has scores."""
    answer = json.loads(place.actscope("demo", "--once", "Tell me about a fox in the snow", "--json"))
    _expect(answer["computed"] > 0 and any(token["scores"] for token in answer["tokens"]), f"no scores: {answer}")


def capture(place: Place) -> None:
    """Make a tiny local model, record it from Python, and read rows back."""
    place.run(str(place.python), "-c", CAPTURE)


def info(place: Place) -> None:
    """Summarize and check the recording."""
    found = json.loads(place.actscope("info", "run.acts", "--json"))
    _expect(found["rows"] > 0 and found["complete"], f"not whole: {found}")
    place.actscope("verify", "run.acts")


def replay(place: Place) -> None:
    """Play the recording: the gateway lists its request."""
    with place.serving("replay", "run.acts", "--port", "0", "--no-browser", marker="api_key") as lines:
        found = _get(place, _value(lines, "API"), _value(lines, "api_key"))
    _expect("r000001" in found, f"no request r000001: {found}")


def export(place: Place) -> None:
    """Export the recording, and read the files with another library."""
    place.actscope("export", "run.acts", "--to", "rows", "--format", "safetensors")
    place.run(str(place.python), "-c", EXPORTED)


def train(place: Place) -> None:
    """Train a probe on a small file of labels, and check its file."""
    texts = [("A wolf howls in the dark forest", True), ("She pours a cup of warm tea", False)]
    rows = [{"text": f"{text}, {i} times.", "label": {"wolf": label}} for i in range(LABELS) for text, label in texts]
    (place.directory / "work" / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    place.actscope("probe", "train", "labels.jsonl", "--sites", "last", "--out", "probes")
    place.actscope("probe", "test", "probes/wolf.safetensors")


def feed(place: Place) -> None:
    """Serve activations, and read a batch with the client."""
    words = ("feed", "--config", "test", "--port", "0", "--json")
    with place.serving(*words, marker='"token"') as lines:
        told = json.loads(lines[-1])
        place.run(str(place.python), "-c", FEED, told["url"], told["token"])


def gateway(place: Place) -> None:
    """Put a second gateway in front of `serve`, and chat through it: the chunks have scores."""
    serve = ("serve", "actscope/builtin", "--port", "0")
    with place.serving(*serve, marker="api_key"), place.serving("gateway", "--port", "0", marker="api_key") as lines:
        url = f"{_value(lines, 'API').partition(' ')[0]}/chat/completions"
        body = {
            "model": "actscope/builtin",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 8,
            "actscope": True,
        }
        answer = _get(place, url, _value(lines, "api_key"), body)
    _expect('"scores"' in answer, f"no scores: {answer[:2000]}")


_HTTP = """
import sys, httpx
url, key, body = sys.argv[1:]
head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
answer = httpx.request("POST" if body else "GET", url, headers=head, content=body or None, timeout=100)
print(answer.raise_for_status().text)
"""


def _get(place: Place, url: str, key: str, body: dict[str, Any] | None = None) -> str:
    return place.run(str(place.python), "-c", _HTTP, url, key, json.dumps(body) if body else "")


STEPS: tuple[Callable[[Place], None], ...] = (
    version, doctor, demo, capture, info, replay, export, train, feed, gateway,
)  # fmt: skip


@dataclass
class Times:
    """The steps so far, with their times and failures."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def step(self, name: str, what: str, do: Callable[[], None]) -> bool:
        """Do a step and print its line. Returns whether it succeeded."""
        began = time.monotonic()
        try:
            do()
        except (StepFailed, subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
            self.rows.append({"step": name, "seconds": time.monotonic() - began, "failed": f"{error}"})
        else:
            self.rows.append({"step": name, "seconds": time.monotonic() - began, "failed": ""})
        row = self.rows[-1]
        print(f"{name:<10} {row['seconds']:>7.1f} s  {'FAILED ' if row['failed'] else ''}{what}", flush=True)
        if row["failed"]:
            print("    " + row["failed"].replace("\n", "\n    "), flush=True)
        return not row["failed"]


def build(directory: Path) -> Path:
    """Build the wheel of this checkout."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(directory),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (wheel,) = directory.glob("actscope-*.whl")
    return wheel


def install(place: Place, wheel: Path) -> None:
    """Install the wheel into a new environment, with the versions that this project tests."""
    subprocess.run([place.base, "-m", "venv", str(place.python.parents[1])], check=True)
    pip = [str(place.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{EXTRA}]"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise StepFailed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-3000:]}")


def make_place(directory: Path) -> Place:
    """Make the directories of the steps, for another user where root allows it. HOME is read-only."""
    base, user = _who()
    directory.chmod(0o755)
    for name in ("home", "tmp", "work"):
        (directory / name).mkdir(mode=0o700)
        if user is not None and name != "home":
            os.chown(directory / name, user, user)
    (directory / "home").chmod(0o555)
    return Place(directory, directory / "venv" / "bin" / "python", base, user)


def _who() -> tuple[str, int | None]:
    """Return a Python and the other user who may run it; this Python and None where there is no such pair."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody").pw_uid
        for base in (getattr(sys, "_base_executable", sys.executable), f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
            with suppress(OSError, subprocess.CalledProcessError):
                command = [base, "-c", "import ensurepip, venv"]
                subprocess.run(
                    command, check=True, capture_output=True, user=user, group=user, extra_groups=[], cwd="/"
                )
                return base, user
    return sys.executable, None


def main() -> int:
    """Run all steps and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="Wheel to try. By default one is built of this checkout.")
    parser.add_argument("--json", type=Path, help="Write the times to this file too.")
    parser.add_argument("--keep", action="store_true", help="Leave the directory of the steps.")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="actscope-first-hour-"))
    try:
        place, times = make_place(directory), Times()
        wheel = args.wheel or build(directory)
        if times.step("install", f"pip install {wheel.name}[{EXTRA}]", lambda: install(place, wheel)):
            for step in STEPS:
                times.step(step.__name__, (step.__doc__ or "").strip(), lambda step=step: step(place))  # type: ignore[misc]
        total = sum(row["seconds"] for row in times.rows)
        who = "the caller" if place.user is None else f"user {place.user}"
        print(f"{'total':<10} {total:>7.1f} s  as {who}, with a read-only HOME and without a hub")
        if args.json:
            args.json.write_text(json.dumps({"steps": times.rows, "seconds": total, "user": who}, indent=1) + "\n")
        return int(any(row["failed"] for row in times.rows))
    finally:
        (directory / "home").chmod(0o700)
        if not args.keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
