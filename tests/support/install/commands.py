"""Every command of the command line, as a user would try it, with the extra that it needs and how one sees that it works."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[2] / "data"
RECORDING, PROBE, VECTOR, HARVEST = (
    str(DATA / name) for name in ("recording-0.1", "probe-0.1.safetensors", "repeng-0.4.gguf", "harvest-0.1")
)
_LINE = re.compile(r"pip install 'actscope\[([\w,]+)\]'")


@dataclass(frozen=True)
class Attempt:
    """A command that a user tries, in an empty directory that has `prompts.txt` and `labels.jsonl`."""

    line: str
    """What is typed after `actscope`."""
    extra: str
    """Extra that the install line names on an installation without extras; "": the command works there."""
    works: str
    """Part of what is printed where the packages are there: the command works, or refuses this input. Empty: not tried there,
    because it would take long."""
    until: bool = False
    """The command runs until it is interrupted: it works when it has printed `works`."""

    @property
    def words(self) -> list[str]:
        """Return the arguments."""
        return self.line.format(recording=RECORDING, probe=PROBE, vector=VECTOR, harvest=HARVEST).split()


#: Where a model would be loaded, the input is one that is refused before: what is tried here is whether packages are missed.
ATTEMPTS = (
    Attempt("--version", "", "actscope 0"),
    Attempt("--help", "", "Commands:"),
    Attempt("doctor", "", "Python"),
    Attempt("doctor http://127.0.0.1:1", "", "does not answer"),
    Attempt("doctor ./absent", "hf", "NO   model"),
    Attempt("demo --once hi --probes absent", "hf", "--probes absent: not a directory"),
    Attempt("demo --model x.gguf --once hi --probes absent", "gguf", "--probes absent: not a directory"),
    Attempt("serve actscope/builtin --probes absent", "hf", "--probes absent: not a directory"),
    Attempt("gateway --port 0 --no-browser", "gateway", "Ctrl-C stops it", until=True),
    Attempt("watch", "", "is running yet; waiting", until=True),
    Attempt("mark --last", "", "no engine is running"),
    Attempt("why chatcmpl-1 --url http://127.0.0.1:1", "", "does not answer"),
    Attempt("probe list", "", "no engine is running"),
    Attempt("probe list .", "", "activation"),
    Attempt("probe test {probe}", "", ": ok, danger"),
    Attempt("probe import {vector} --out probes", "", "3 probes written"),
    Attempt("probe import x.skops --site layers.0.resid_post", "probes", "x.skops: "),
    Attempt("probe add {probe}", "", "no engine is running"),
    Attempt("probe remove danger", "", "no engine is running"),
    Attempt("probe train labels.jsonl --model ./absent", "hf", "./absent"),
    Attempt("capture actscope/builtin absent.txt --to run", "hf", "absent.txt: cannot be read"),
    Attempt("info {recording}", "record", "positions computed"),
    Attempt("verify {recording}", "record", "ok"),
    Attempt("recover absent", "record", "no such directory"),
    Attempt("export {recording} --to rows-s", "record", "as safetensors"),
    Attempt("export {recording} --to rows-n --format npy", "record", "as npy"),
    Attempt("export {recording} --to rows-p --format parquet", "export", "as parquet"),
    Attempt("export {recording} --to rows-z --format zarr", "export", "as zarr"),
    Attempt("import absent --to imported", "record", "absent"),
    Attempt("replay {recording} --port 0 --no-browser", "gateway,record", "Ctrl-C stops it", until=True),
    Attempt("analyze {recording}", "record", "effective rank"),
    Attempt("analyze {recording} --to plain --no-plots", "record", "files written"),
    Attempt("analyze {recording} --to report", "analyze", "files written"),
    Attempt("metrics io --source proc --interval 0.1 --count 1 --no-output --json", "", '"timestamp"'),
    Attempt("metrics system --source proc --interval 0.1 --count 1 --no-output --json", "", '"timestamp"'),
    Attempt("metrics report {recording}", "analyze", "report.html: "),
    Attempt("metrics trace {recording}", "analyze", "trace.pftrace: "),
    Attempt("metrics dashboard", "", "actscope_probe_score_bucket"),
    Attempt("harvest --out {harvest} --verify", "", "finished"),
    Attempt("harvest --out s3://bucket/rows --verify --device cpu", "harvest", "s3://bucket"),
    Attempt("harvest --out h --model ./absent --dataset builtin --sites last --dry-run", "hf", "./absent"),
    Attempt("harvest --out h --model ./absent --dataset absent.txt --sites last --dry-run", "feed", "absent.txt"),
    Attempt("feed --presets", "feed", "large-scale"),
    Attempt("feed --check --model actscope/builtin --dataset builtin --port 0", "", "shared memory"),
    Attempt("feed --model ./absent --dataset builtin --port 0", "feed", "./absent"),
    *(
        Attempt(f"bench {name}", "hf", "")
        for name in ("capture", "codec", "feed", "gateway", "harvest", "models", "sae", "soak")
    ),
    Attempt("bench store", "record", ""),
    Attempt("bench absent", "", "no bench 'absent'"),
    Attempt("bench vllm", "vllm", "needs vLLM"),
)

#: Imports and calls in Python that need an extra, and the extra that their error names on an installation without extras.
CALLS = {
    "from actscope.feed import FeedClient": "hf",
    "from actscope.feed import AsyncFeedClient": "hf",
    "from actscope.feed import FeedDataset": "hf",
    "from actscope.harvest import open_harvest": "",
    "import actscope; actscope.capture(None, to='run')": "hf",
    "import actscope; actscope.explain(None, None)": "hf",
    f"import actscope; actscope.open({RECORDING!r})": "record",
    "import actscope; actscope.client.wrap(None)": "client",
    "from actscope.probes import load_probe": "",
}


def install_lines(output: str) -> list[str]:
    """Return the extras of the install lines in an output."""
    return _LINE.findall(output)


def prepare(directory: Path) -> None:
    """Write the files that the attempts name."""
    (directory / "prompts.txt").write_text("hello\n")
    labels = (("A wolf howls in the dark forest", "true"), ("She pours a cup of warm tea", "false"))
    lines = [
        f'{{"text": "{text}, {n} times.", "label": {{"danger": {holds}}}}}\n'
        for n in range(20)
        for text, holds in labels
    ]
    (directory / "labels.jsonl").write_text("".join(lines))
