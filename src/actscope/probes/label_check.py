"""Whether labelled texts can give a probe, judged before a model reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actscope.errors import ProbeError
from actscope.probes.labels import LabelledText, known_labels
from actscope.probes.train import MIN_EXAMPLES, PARTS, place_of


def trainable_labels(texts: Sequence[LabelledText], wanted: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Return the labels to train, and why the others cannot be trained.

    A label cannot be trained if a part of the texts (fitting, choosing, held out) has too few bytes of text where it holds, or
    where it does not: a token has at least one byte.

    Args:
        texts: The texts, in their order, which decides the part of each.
        wanted: Labels that must be trained; none stands for all that can be.

    Returns:
        The labels, and the reasons by label.

    Raises:
        ProbeError: No text has a wanted label, a wanted label cannot be trained, or none can.
    """
    known = known_labels(texts)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ProbeError(f"no text is labelled {', '.join(unknown)}; the labels are {', '.join(known)}")
    chosen = list(dict.fromkeys(wanted)) or known
    reasons = {label: reason for label in chosen if (reason := _why_not(texts, label))}
    if reasons and (wanted or len(reasons) == len(chosen)):
        raise ProbeError("\n".join(f"label {label!r}: {reason}" for label, reason in reasons.items()))
    return [label for label in chosen if label not in reasons], reasons


def _why_not(texts: Sequence[LabelledText], label: str) -> str:
    """Return why a label cannot be trained, or an empty text."""
    sizes = np.array([_sizes(text, label) for text in texts], np.int64).reshape(-1, 2)
    n = sum(label in text.spans for text in texts)
    for side, (here, there) in enumerate((("holds", "does not hold"), ("does not hold", "holds"))):
        if not sizes[:, side].any():
            return f"{there} in all of the {n} texts that name it; texts in which it {here} are needed too"
    place = place_of(np.arange(len(texts)))
    for name, (low, high) in PARTS.items():
        part = (place >= low) & (place < high)
        holds, fails = sizes[part].sum(0).tolist()
        if min(holds, fails) < MIN_EXAMPLES:
            return (
                f"the {name} texts ({int(part.sum())} of {len(texts)}) have {holds} bytes where it holds and {fails} where it "
                f"does not; at least {MIN_EXAMPLES} tokens of each kind are needed in each part; give more text"
            )
    return ""


def _sizes(text: LabelledText, label: str) -> tuple[int, int]:
    """Return the bytes of a text where the label holds, and where it does not. Both 0 if the text does not name it."""
    if label not in text.spans:
        return 0, 0
    holds = np.zeros(len(text.text), bool)
    for begin, end in text.spans[label]:
        holds[begin:end] = True
    sizes = np.array([len(character.encode("utf-8", "replace")) for character in text.text], np.int64)
    return int(sizes[holds].sum()), int(sizes[~holds].sum())
