"""Trains the built-in model on two CPU cores, in under an hour, from nothing.

    python -m actscope.engines.builtin.train [--minutes 40] [--out DIR] [--resume]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actscope.engines.builtin import model_path
from actscope.engines.builtin.data import Rows, texts
from actscope.engines.builtin.optimizer import Optimizer
from actscope.engines.builtin.tokenizer import save_tokenizer, train_tokenizer

# Rows of a batch by their length; every batch holds the same number of tokens. Most texts are short, but a conversation
# may fill the whole context, and positions that were never trained fall apart.
BATCH_TOKENS = 4096
LENGTHS = (256, 256, 256, 256, 256, 256, 256, 2048)
MUON_RATE, ADAM_RATE, WARM_UP = 0.02, 3e-3, 0.02
CHECKPOINT_EVERY_S = 120.0


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 3.6 million parameters, not trained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def rate(progress: float) -> float:
    """The share of the peak learning rate when that share of the time is over: a warm-up, then a cosine to 1 %."""
    if progress < WARM_UP:
        return progress / WARM_UP + 0.01
    done = min(1.0, (progress - WARM_UP) / (1 - WARM_UP))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token."""
    hidden = model.model(batch[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), batch[:, 1:].flatten())


@dataclass
class Run:
    """A training run: what it is made of, and how far it is."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    out: Path
    seconds: float
    seed: int
    step: int = 0
    elapsed: float = 0.0
    optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.model.model.layers, self.model, MUON_RATE, ADAM_RATE)
        self.loss_of = torch.compile(loss_of, dynamic=False)

    @property
    def tokens(self) -> int:
        return self.step * BATCH_TOKENS

    def train(self) -> None:
        """Trains until the time is over, and writes a checkpoint now and then."""
        rows = Rows(self.tokenizer, self.seed + self.step)
        self._compile()
        started, saved = time.monotonic() - self.elapsed, self.elapsed
        while self.elapsed < self.seconds:
            loss = self._one_step(rows)
            self.elapsed = time.monotonic() - started
            if self.step % 50 == 0:
                self._report(loss)
            if self.elapsed - saved > CHECKPOINT_EVERY_S:
                self.save_checkpoint()
                saved = self.elapsed

    def _compile(self) -> None:
        """Compiles for every length before the clock starts: 1.4 times as fast, about a minute for each."""
        for length in sorted(set(LENGTHS)):
            self.loss_of(self.model, torch.ones(BATCH_TOKENS // length, length + 1, dtype=torch.int64)).backward()
        self.model.zero_grad()

    def _one_step(self, rows: Rows) -> torch.Tensor:
        length = LENGTHS[self.step % len(LENGTHS)]
        batch = torch.from_numpy(rows.batch(BATCH_TOKENS // length, length))
        loss = self.loss_of(self.model, batch)
        loss.backward()
        self.optimizer.step(rate(self.elapsed / self.seconds))
        self.step += 1
        return loss.detach()

    def _report(self, loss: torch.Tensor) -> None:
        left = max(0.0, self.seconds - self.elapsed)
        sys.stdout.write(
            f"step {self.step}  loss {loss.item():.3f}  {self.tokens / self.elapsed:,.0f} tokens/s"
            f"  {self.tokens / 1e6:.1f} M tokens  {left / 60:.1f} min left\n"
        )
        sys.stdout.flush()

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint"

    def save_checkpoint(self) -> None:
        """Publishes weights, optimizer moments and progress in one file, by renaming a sibling."""
        self._checkpoint.mkdir(parents=True, exist_ok=True)
        state = {f"model.{name}": p.data for name, p in self.model.named_parameters()}
        state |= self.optimizer.state()
        state["progress"] = torch.tensor([self.step, self.elapsed], dtype=torch.float64)
        save_file(state, self._checkpoint / "state.tmp")
        (self._checkpoint / "state.tmp").rename(self._checkpoint / "state.safetensors")
        save_tokenizer(self.tokenizer, self._checkpoint)

    def load_checkpoint(self) -> None:
        """Goes on from the last checkpoint; raises FileNotFoundError when there is none."""
        state = load_file(self._checkpoint / "state.safetensors")
        step, self.elapsed = state["progress"].tolist()
        self.step = int(step)
        for name, p in self.model.named_parameters():
            p.data.copy_(state[f"model.{name}"])
        self.optimizer.load(state)

    def export(self) -> None:
        """Writes what `from_pretrained` reads: bf16 weights, config, tokenizer and chat template."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.model.generation_config.do_sample = False
        self.model.to(torch.bfloat16).save_pretrained(self.out)
        save_tokenizer(self.tokenizer, self.out)


def start(out: Path, minutes: float, seed: int, resume: bool) -> Run:
    """A new run, or the one whose checkpoint lies in `out`."""
    torch.manual_seed(seed)
    if resume:
        tokenizer = AutoTokenizer.from_pretrained(out / "checkpoint")
    else:
        tokenizer = train_tokenizer(texts(30_000, seed, "train"))
    run = Run(new_model(tokenizer), tokenizer, out, minutes * 60, seed)
    if resume:
        run.load_checkpoint()
    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model.")
    parser.add_argument("--minutes", type=float, default=40.0, help="wall time of the training (default 40)")
    parser.add_argument("--out", type=Path, default=model_path(), help="where the model goes (default: the package)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args(argv)
    run = start(options.out, options.minutes, options.seed, options.resume)
    run.train()
    run.save_checkpoint()
    run.export()


if __name__ == "__main__":
    main()
