"""README's and the guide's code blocks run as written, in order, with the built-in model in place of hub ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from support.docs.blocks import TOKEN, BlockPlayer, CodeBlock, blocks_of, free_port

import actscope
from actscope.engines.builtin import NAME, labelled
from actscope.engines.hf.loading import load

ROOT = Path(__file__).parents[2]
HUB_ID = "Qwen/Qwen2.5-0.5B-Instruct"
#: Blocks that do not run here, by how they begin, and why.
NOT_RUN = {
    "make ": "targets of the Makefile: `make demo` and `make test` install, and run this very test",
    "pip install": "installs packages, and starts a real vLLM: tests/engines/vllm/test_gateway.py runs the same two commands",
    "location ": "a part of nginx's configuration: tests/clients/test_nginx.py runs nginx with it",
    "your client": "a picture",
}


def is_run(block: CodeBlock) -> bool:
    return not any(block.text.strip().startswith(start) for start in NOT_RUN)


@pytest.fixture
def player(tmp_path: Path) -> Any:
    """Runs blocks with the built-in model, free ports, a token that is known, and a feed that ends."""
    gateway, feed = free_port(), free_port()
    instead = {
        HUB_ID: NAME,
        "serve MODEL": f"serve {NAME}",
        "<the token>": TOKEN,
        'token="..."': f'token="{TOKEN}"',
        "127.0.0.1:6969": f"127.0.0.1:{gateway}",
        "127.0.0.1:6970": f"127.0.0.1:{feed}",
        "0,7,15": "0,2,4",  # the built-in model has 5 layers
        "enc_19_": "enc_2_",
    }
    more = {"serve": ["--port", str(gateway)], "feed": ["--port", str(feed), "--epochs", "1", "--texts", "200"]}
    with BlockPlayer(tmp_path, instead, more, model_in_memory()) as made:
        yield made


def model_in_memory() -> dict[str, Any]:
    """What a page's Python blocks take for granted: a model of transformers with its tokenizer, and inputs."""
    loaded = load(NAME)
    inputs = loaded.tokenizer(
        "Tell me a long story about a fox in the snow, and what it saw there.", return_tensors="pt"
    )
    return {"actscope": actscope, "model": loaded.model, "tokenizer": loaded.tokenizer, "inputs": dict(inputs)}


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
def test_the_blocks_of_the_readme_run_in_order(player: BlockPlayer) -> None:
    ran = [block for block in blocks_of(ROOT / "README.md") if is_run(block)]
    for block in ran:
        player.play(block)
    assert len(ran) >= 4
    assert actscope.open(player.folder / "run.acts").complete


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
def test_the_blocks_of_the_guide_run_in_order(player: BlockPlayer) -> None:
    """With the files that it names: a control vector, a model of scikit-learn, a direction, and more labelled text."""
    make_named_files(player.folder)
    ran = [block for block in blocks_of(ROOT / "docs/guide.md") if is_run(block)]
    for block in ran:
        if block.text.startswith("{"):
            write_labelled(player.folder / "my-labels.jsonl", block.text)
        else:
            player.play(block)
    assert len(ran) >= 8
    assert list((player.folder / "probes" / NAME).glob("*.safetensors")), "probe train has written none"
    assert actscope.open(player.folder / "run.acts").complete


def make_named_files(folder: Path) -> None:
    skops = pytest.importorskip("skops.io")
    shutil.copy(ROOT / "tests/data/repeng-0.4.gguf", folder / "happy.gguf")
    rows = np.random.default_rng(0).normal(size=(64, 256))
    skops.dump(LogisticRegression().fit(rows, rows[:, 0] > 0), folder / "mood.skops")
    (folder / "probes/my-model").mkdir(parents=True)
    (folder / "probes/my-model/enc_2_refusal.json").write_text(json.dumps({"vector": [1.0] * 256}))


def write_labelled(path: Path, block: str) -> None:
    """The block's own lines, and as many of its form as training needs."""
    more = [
        {"text": text.text, "spans": {name: text.spans[name] for name in ("danger", "joy")}} for text in labelled(150)
    ]
    path.write_text(block + "".join(json.dumps(line) + "\n" for line in more))


def test_each_block_that_does_not_run_is_there() -> None:
    """A reason for a block that is gone is removed."""
    texts = [block.text.strip() for page in ("README.md", "docs/guide.md") for block in blocks_of(ROOT / page)]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []
