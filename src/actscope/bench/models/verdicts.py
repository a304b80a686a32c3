"""What the matrix says of one architecture, as JSON, and the counts over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from actscope.bench.models.checks import SiteFinding

Verdict = Literal["right", "refused", "wrong", "cannot"]
VERDICTS: tuple[Verdict, ...] = ("right", "refused", "wrong", "cannot")


@dataclass(slots=True)
class PointResult:
    """Numbers of sites of one point by status, and the distinct reasons of those that are not right."""

    right: int = 0
    refused: int = 0
    wrong: int = 0
    unchecked: int = 0
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class MatrixEntry:
    """The result of one architecture with one engine.

    Attributes:
        name: Model type of transformers.
        kind: causal, multimodal or encoder-decoder.
        engine: transformers or vllm.
        model_class: Class of the model, or "" if it could not be built.
        verdict: See `VERDICTS`.
        reason: Why it is not right.
        points: Result of the plain pass by point.
        cases: For each way of running the model: "right", or "refused: ...", "wrong: ..." or "cannot: ..." with the reason.
        hidden_states: For each index of transformers' `hidden_states`, the sites that hold the same rows.
        seconds: Duration.
    """

    name: str
    kind: str
    engine: str = "transformers"
    model_class: str = ""
    verdict: Verdict = "cannot"
    reason: str = ""
    points: dict[str, PointResult] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)
    hidden_states: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the entry as JSON values."""
        return asdict(self)

    def add_points(self, findings: Iterable[SiteFinding]) -> None:
        """Count the findings of the plain pass by point. The worst status of a site counts, once."""
        order = ("right", "unchecked", "refused", "wrong")
        worst: dict[str, SiteFinding] = {}
        for finding in findings:
            known = worst.get(finding.site)
            if known is None or order.index(finding.status) > order.index(known.status):
                worst[finding.site] = finding
        for finding in worst.values():
            result = self.points.setdefault(finding.point, PointResult())
            setattr(result, finding.status, getattr(result, finding.status) + 1)
            told = described(finding)
            if finding.status != "right" and told not in result.reasons:
                result.reasons.append(told)


def described(finding: SiteFinding) -> str:
    """Return what is to say of a finding, with its number."""
    number = f" (by {finding.off:.2g} of the largest number)" if finding.status == "wrong" and finding.off else ""
    return finding.what.removeprefix(f"{finding.site}: ") + number


def summary_of(findings: Sequence[SiteFinding]) -> str:
    """Return the result of one case: "right" if nothing is wrong and `resid_post` was delivered, else what is not.

    Parts of a block that are refused in all cases are counted by point.
    """
    wrong = [finding for finding in findings if finding.status == "wrong"]
    stream = [finding for finding in findings if finding.point == "resid_post"]
    if wrong:
        return f"wrong: {_commonest(wrong)}"
    if all(finding.status == "refused" for finding in stream):
        return f"refused: {_commonest(stream)}" if stream else "refused: no resid_post was delivered"
    return "right"


def _commonest(findings: Sequence[SiteFinding]) -> str:
    """Return the most common reason, and where it holds."""
    what, _ = Counter(described(finding) for finding in findings).most_common(1)[0]
    sites = [finding.site for finding in findings if described(finding) == what]
    where = sites[0] if len(sites) == 1 else f"{len(sites)} sites, first {sites[0]}"
    return f"{where}: {what}"


def decide(entry: MatrixEntry) -> None:
    """Set the verdict from points and cases: right if nothing that was delivered is wrong, and `resid_post` was delivered."""
    wrong = [
        f"{point}: {reason}" for point, result in entry.points.items() if result.wrong for reason in result.reasons
    ]
    wrong += [f"{case}: {told}" for case, told in entry.cases.items() if told.startswith("wrong")]
    post = entry.points.get("resid_post", PointResult())
    if wrong:
        entry.verdict, entry.reason = "wrong", "; ".join(wrong)
    elif post.right and not post.unchecked:
        entry.verdict, entry.reason = "right", ""
    elif post.unchecked:
        entry.verdict, entry.reason = (
            "cannot",
            "rows are delivered, but no reference was found: no list of modules is a chain",
        )
    else:
        entry.verdict, entry.reason = "refused", "; ".join(post.reasons) or "no resid_post was delivered"


def counts(entries: Iterable[MatrixEntry], engine: str) -> dict[str, int]:
    """Return the number of entries by verdict, under names such as transformers_right."""
    found = Counter(entry.verdict for entry in entries if entry.engine == engine)
    return {f"{engine}_{verdict}": found[verdict] for verdict in VERDICTS}
