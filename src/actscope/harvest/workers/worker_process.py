"""Entry point of a worker process: `python -m actscope.harvest.workers.worker_process FD JOB`, where FD is a socket to the crew.

The process ends when the socket closes. A unit that is then being computed is finished and committed first, so it is not lost.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback

import msgspec

from actscope._lazy import missing_extra
from actscope.errors import ActscopeError
from actscope.harvest import plan as plans
from actscope.harvest.storage import open_storage
from actscope.harvest.worker import UnitWorker
from actscope.harvest.workers.messages import Answer, Opened, Order, Propose, Proposed, Ran, RunUnit, WorkerJob, raised
from actscope.serving.messages import Messages

MOST_BYTES = 16 << 20
answers: Messages[Answer] = Messages(Answer, most_bytes=MOST_BYTES)
orders: Messages[Order] = Messages(Order, most_bytes=MOST_BYTES)


class Station:
    """Worker that is opened by its first order, so that errors of opening are answers too."""

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._worker: UnitWorker | None = None

    def obey(self, order: Order) -> Answer:
        """Carry out an order and return the answer. Errors are answers; an unexpected one also prints a traceback to stderr."""
        try:
            worker = self._worker = self._worker or _open(self._job)
            if isinstance(order, RunUnit):
                return Ran(worker.run(plans.decode(order.plan, "the submitted plan"), order.unit))
            return Proposed(worker.propose()) if isinstance(order, Propose) else Opened()
        except ModuleNotFoundError as error:
            return raised(missing_extra(error))
        except Exception as error:  # the boundary of this process: the crew handles the error
            if not isinstance(error, ActscopeError):
                traceback.print_exc()
            return raised(error)


def _open(job: WorkerJob) -> UnitWorker:
    _prepare_process()
    return UnitWorker(job.settings, open_storage(job.out, allow_http=job.allow_http))


def _prepare_process() -> None:
    """Select deterministic kernels, and disable progress bars on the crew's terminal."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # otherwise every worker would use as many threads as there are cores
    import torch
    from transformers.utils import logging as transformers_logging

    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("torch").setLevel(logging.ERROR)


def main() -> None:
    """Carry out the crew's orders until the socket closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    station = Station(msgspec.json.decode(sys.argv[2], type=WorkerJob))
    while (order := orders.receive(connection)) is not None:
        try:
            answers.send(connection, station.obey(order))
        except OSError:
            return  # the crew is gone


if __name__ == "__main__":
    main()
