"""Write the texts on which the SAE of SmolLM2 is trained, as JSON lines with a `text` each.

    python scripts/smollm2/write_texts.py TEXTS.jsonl [--chats 960] [--tokens 110]

They are of four kinds: chats that the model samples itself (temperature 1), the labelled texts of its probes, and this project's
documents and code. Run again with the same file, the script goes on after the chats that are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from texts.topics import prompts
from train_probes import PARTS, render, samples_of

from actscope.cli.common.progress import ProgressBar
from actscope.engines.hf.loading import load
from actscope.engines.smollm2 import NAME

ROOT = Path(__file__).resolve().parents[2]
BATCH = 48
SEED = 21
#: Longest piece of a document, in characters: its tokens fit the feed's context.
PIECE = 3000


def chats(n: int, tokens: int, done: int) -> Iterator[str]:
    """Sample chats number `done` to `n`, each a prompt and an answer of at most `tokens` tokens."""
    loaded = load(NAME, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    asked = prompts(Random(SEED))[done:n]
    with ProgressBar() as bar, torch.inference_mode():
        for start in range(0, len(asked), BATCH):
            torch.manual_seed(SEED + done + start)
            heads = [
                f"<|im_start|>user\n{one}<|im_end|>\n<|im_start|>assistant\n" for one in asked[start : start + BATCH]
            ]
            batch = tokenizer(heads, return_tensors="pt", padding=True)
            ids = model.generate(**batch, max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0)
            for head, answer in zip(heads, ids[:, batch["input_ids"].shape[1] :], strict=True):
                text = tokenizer.decode(answer, skip_special_tokens=True)
                ended = (answer == model.generation_config.eos_token_id).any()
                yield head + text + ("<|im_end|>\n" if ended else "")
            bar.update("sampling chats", done + start + len(heads), n)


def own_texts() -> Iterator[str]:
    """The labelled texts of the probes in their chats, and pieces of this project's documents and code."""
    rng = Random(SEED)
    for part in PARTS:
        yield from (render(sample, part, rng)[0] for sample in samples_of(part, 24))
    documents = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    code = [*sorted(ROOT.glob("src/**/*.py"))[::4], *sorted(ROOT.glob("web/src/**/*.ts*"))[::4]]
    for path in (*documents, *code):
        yield from pieces(path.read_text())


def pieces(text: str) -> Iterator[str]:
    """Cut a text at line ends into pieces of at most `PIECE` characters."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PIECE:
            yield piece
            piece = ""
        piece += line[:PIECE]
    if piece.strip():
        yield piece


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--chats", type=int, default=960)
    parser.add_argument("--tokens", type=int, default=110)
    options = parser.parse_args()
    sampled = options.out.with_suffix(".chats.jsonl")
    there = sampled.read_text().splitlines() if sampled.exists() else []
    done = len(there) // BATCH * BATCH
    with sampled.open("w") as file:
        file.writelines(f"{line}\n" for line in there[:done])
        for text in chats(options.chats, options.tokens, done):
            file.write(json.dumps({"text": text}) + "\n")
            file.flush()
    texts = [*sampled.read_text().splitlines(), *(json.dumps({"text": text}) for text in own_texts())]
    Random(SEED).shuffle(texts)
    options.out.write_text("\n".join(texts) + "\n")
    print(f"{len(texts)} texts in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
