"""Readers of messages and small files: sockets, receipts of harvests, cards, settings, answers, and what clients send."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError
from support.attacks.fuzzing import Target

from actscope.capture.prompts import read_prompts
from actscope.engines.vllm import sidecar_protocol as sidecar
from actscope.errors import SettingsError, UpstreamError
from actscope.feed import messages as feed
from actscope.feed.server.checkpoint import _ORDER, StateFile
from actscope.feed.settings import FeedSettings
from actscope.gateway.api.completion_request import CHAT, COMPLETIONS, read_call
from actscope.gateway.api.schemas import ChatCompletionRequest, CompletionRequest
from actscope.gateway.scores.probe_table import table_of
from actscope.gateway.upstream.upstream import json_object
from actscope.harvest import claims, commit, manifest, plan
from actscope.harvest.shards.reading import ShardRows
from actscope.ring.discovery import EngineCard, read_card
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.serving.errors import Problem
from actscope.serving.messages import Messages

HARVEST = Path(__file__).parents[2] / "data" / "harvest-0.1"


def _taken(messages: Messages[Any]) -> Callable[[bytes], object]:
    """Return a reader of bytes as they come from a socket: all messages of them, by both ways of reading."""

    def take(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(data[: 1 << 16])
            ours.close()
            messages.receive(theirs)
        buffer = bytearray(data)
        while messages.take(buffer) is not None:
            pass

    return take


def _socket_targets() -> Iterator[Target]:
    memory = feed.Memory(2, 16, 1, 8, "float32")
    sums = feed.WindowSums(b"\0" * 64, b"\0" * 64, 1.0)
    loaded = feed.Loaded(
        pid=1, engine="hf", model="m", revision="r", sites=["s"], width=8, dtype="float32", deterministic=True, dataset="d",
        fingerprint="f", n_texts=3,
    )  # fmt: skip
    filled = feed.Filled(window=0, n_rows=3, begun=(0, 0), after=(1, 2), epoch_over=False, seconds=0.1, sums=[sums])
    welcome = feed.Welcome(
        memory=memory, sites=["s"], model="m", revision="r", seed=1, shuffle=True, most_rows=8, lease_seconds=1.0
    )
    granted = feed.Granted(1, [feed.Stretch(0, 1, 0, 0, 0, 16, 0, 4)], "1:0:0", "1:0:4", 0)
    by_side: dict[str, tuple[Messages[Any], list[object]]] = {
        "generator to feed": (feed.FROM_GENERATOR, [feed.Loading("x"), loaded, filled, feed.Failed("x", True), feed.Beat()]),
        "feed to generator": (feed.TO_GENERATOR, [feed.Start(b"{}"), memory, feed.FillWindow(0, 1, 0, 0, (1, 2))]),
        "consumer to feed": (feed.FROM_CONSUMER, [feed.Hello("t", "g"), feed.Claim(4, 1.0), feed.Release(1, True)]),
        "feed to consumer": (
            feed.TO_CONSUMER,
            [welcome, granted, feed.NotReady("x", 1), feed.Ended("x"), feed.Refused("x", True)],
        ),
    }  # fmt: skip
    for name, (messages, examples) in by_side.items():
        yield Target(f"messages, {name}", [messages.pack(one) for one in examples], _taken(messages), 500)
    bank = sidecar.SetBank(3, [sidecar.SiteBank(0, b"\0" * 32, b"\0" * 4, b"\0" * 4, [1], [0], [1])], b"state")
    options = sidecar.RequestOptions("a", "0,1", "keep")
    examples = [
        bank,
        options,
        sidecar.WeightsChanged(1, {"s": "why"}),
        sidecar.Alive(1),
        sidecar.Taken(4),
        sidecar.Staged(2),
    ]
    yield Target("messages, sidecar", [sidecar.pack(one) for one in examples], _taken(sidecar._messages), 600)  # type: ignore[arg-type]
    asked = b'{"rows": "0,1", "full_prompt": true, "keep": "x"}'
    yield Target(
        "options of a vLLM request", [asked], lambda data: sidecar.options_of({"actscope": data.decode("latin-1")}), 300
    )


def _harvest_targets() -> Iterator[Target]:
    whole = plan.decode((HARVEST / "plan.json").read_bytes(), "plan.json")
    receipt = (HARVEST / "receipts" / "000000.json").read_bytes()
    shard = next((HARVEST / "shards").glob("000000-*")).read_bytes()
    rows = commit.decode(receipt, "receipt").rows

    def read_shard(data: bytes) -> None:
        found = ShardRows(bytearray(data), whole, rows, "shard")
        found.labels("token_id")
        found.rows(whole.sites[0])

    def read_plan(data: bytes) -> None:
        found = plan.decode(data, "plan.json")
        found.unit(0).id if found.n_units else None
        found.text_numbers(found.unit(0))[
            :3
        ] if 0 < found.unit_texts <= 1 << 10 and 0 < found.texts <= found.dataset_texts else None

    owner = claims.Owner(name="ab", machine="m", pid=1, started="1", beat=1, lease_s=60.0)
    yield Target("harvest's plan", [(HARVEST / "plan.json").read_bytes()], read_plan, 500)
    yield Target("harvest's receipt", [receipt], lambda data: commit.decode(data, "receipt"), 500)
    yield Target(
        "harvest's manifest",
        [(HARVEST / "manifest.json").read_bytes()],
        lambda data: manifest.decode(data, "manifest"),
        500,
    )
    yield Target("harvest's owner", [msgspec.json.encode(owner)], lambda data: claims._decode(data, "owner"), 300)
    yield Target("harvest's shard", [shard], read_shard, 500)


def _file_targets(folder: Path) -> Iterator[Target]:
    path = folder / "engine-0123456789abcdef.json"
    card = EngineCard(
        id="0123456789abcdef", pid=1, pid_start=1, kind="hf", model="m", revision="r", device="cpu", dtype="float32", n_layers=2,
        d_model=8, max_context=64, special_ids=[0], tokenizer="/t", ring="actscope-0-0123456789abcdef", endpoint="unix:/x",
        started_ns=1, boot_id="b",
    )  # fmt: skip

    def through_card(data: bytes) -> None:
        path.write_bytes(data)
        path.chmod(0o600)
        read_card(path)

    settings = FeedSettings(model="m", dataset="d", state=str(folder / "state.json"))
    order = {name: str(getattr(settings, name)) for name in _ORDER}
    state = msgspec.json.encode({"format": "actscope-feed-state", "position": "1:0:5@0+2", "order": order})

    def through_state(data: bytes) -> None:
        Path(settings.state).write_bytes(data)
        StateFile.open(settings)

    def through_prompts(data: bytes) -> None:
        (folder / "prompts.jsonl").write_bytes(data)
        with as_own_error(SettingsError, "prompts"):
            read_prompts(data.decode().splitlines(), "prompts.jsonl")

    yield Target("engine's card", [msgspec.json.encode(card)], through_card, 500)
    yield Target("feed's state", [state], through_state, 500)
    yield Target(
        "feed's settings",
        [msgspec.json.encode(settings)],
        lambda d: decode_json(d, FeedSettings, SettingsError, "settings"),
        500,
    )
    yield Target("prompts", [b'{"id": "a", "prompt": "x"}\n{"text": "y"}\n'], through_prompts, 300)


def _gateway_targets() -> Iterator[Target]:
    chat = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 2, "actscope": {"probes": ["joy"]}}'
    text = b'{"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "actscope": true, "vllm_xargs": {"actscope": "{}"}}'

    def read(path: str, schema: type[ChatCompletionRequest] | type[CompletionRequest]) -> Callable[[bytes], object]:
        def through(data: bytes) -> None:
            schema.model_validate_json(data)
            read_call(path, data, 8, "vllm")

        return through

    also = (ValidationError, Problem)
    yield Target("chat completion", [chat], read(CHAT, ChatCompletionRequest), 600, also=also)
    yield Target("completion", [text], read(COMPLETIONS, CompletionRequest), 600, also=also)
    yield Target("engine's answer", [b'{"data": [{"id": "m"}]}'], json_object, 300, also=also)
    table = b'{"generation": 3, "probes": [{"slot": 0, "id": "joy", "site": "s", "since": 1, "threshold": 0.5}]}'

    def read_table(data: bytes) -> None:
        with as_own_error(UpstreamError, "table"):
            table_of(decode_json(data, dict, UpstreamError, "table"))

    yield Target("probe table", [table], read_table, 400)


def targets(folder: Path) -> Iterator[Target]:
    """Return the readers of this group."""
    yield from _socket_targets()
    yield from _harvest_targets()
    yield from _file_targets(folder)
    yield from _gateway_targets()
