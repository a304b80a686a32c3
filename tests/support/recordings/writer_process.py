"""A process that records until it is killed: after every flush or sync it says which rows are acknowledged."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from support.recordings.made import frames_of, step_of

from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.resid_post")


def main(path: str, codec: str, seed: str, first_position: str) -> None:
    chance = random.Random(int(seed))
    options = PipelineOptions(memory_bytes=32 << 20, block_bytes=2048, flush_seconds=0.02)
    recorder = Recorder.create(Path(path), RecordingSpec(SITES, codec), options, resume=True)
    request, position, number = f"run{seed}", int(first_position), 0
    print("ready", flush=True)
    while True:
        number += 1
        n = chance.randint(1, 40)
        step = step_of(number, [(request, position, n)])
        recorder.write(step, frames_of(step, SITES))
        position += n
        if chance.random() < 0.3:
            kind = chance.choice(["flush", "sync", "checkpoint"])
            getattr(recorder, kind)()
            print(request, position, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
