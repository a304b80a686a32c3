"""Plugin entry point, called by vLLM in each of its processes (`vllm.general_plugins`). Idempotent, cheap and never fatal.

It wraps four vLLM methods; each wrapper calls the original:

    EngineArgs.create_engine_config          reads our settings; those that change the graph join the compile cache key
    Request.get_skip_reading_prefix_cache    skips the prefix cache for requests that asked for their full prompt
    WorkerWrapperBase.init_device            attaches a RunnerSession after the worker's `load_model`, and pauses it while the
                                             worker warms up; tells it when the worker has taken other weights; has its hooks
                                             run behind those of other plugins
    WorkerWrapperBase.shutdown               closes the session first
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from actscope.engines.vllm.older_tools import replaced_worker
from actscope.engines.vllm.settings import CARRIER, KEY, REPLICAS, GraphSpec, VllmSettings, disabled, read_settings
from actscope.engines.vllm.sidecar_protocol import options_of
from actscope.engines.vllm.versions import is_tested, tested_range
from actscope.errors import ActscopeError, EngineError, SettingsError

if TYPE_CHECKING:
    from actscope.engines.vllm.session import RunnerSession, StagePlacement

log = logging.getLogger("actscope.vllm")

_MARK = "_actscope"
F = TypeVar("F", bound=Callable[..., object])


def register() -> None:
    """Install the wrappers. Idempotent. Does nothing if ACTSCOPE_DISABLE is set."""
    if disabled():
        return
    _log_where_vllm_logs()
    try:
        _wrap_all()
    except Exception as error:  # an incompatible vLLM runs on unwatched, and the log says why
        log.error(
            "actscope does not fit this vLLM (%s; tested with %s) and is off: %s: %s",
            _version(),
            tested_range(),
            type(error).__name__,
            error,
        )


def _wrap_all() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.request import Request
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    _wrap(EngineArgs, "create_engine_config", _with_settings)
    _wrap(Request, "get_skip_reading_prefix_cache", _with_full_prompt)
    _wrap(WorkerWrapperBase, "init_device", _with_session)
    _wrap(WorkerWrapperBase, "shutdown", _with_end)


def _wrap(owner: type, name: str, wrapper: Callable[[F], F]) -> None:
    """Replace a method by `wrapper(original)`, once. Raises AttributeError if there is no such method."""
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        changed = wrapper(original)
        setattr(changed, _MARK, original)
        setattr(owner, name, changed)


def _log_where_vllm_logs() -> None:
    """Reuse vLLM's log handlers: vLLM configures only its own loggers, so our INFO lines would be lost."""
    root = logging.getLogger("actscope")
    theirs = logging.getLogger("vllm")
    if not root.handlers and theirs.handlers:
        root.handlers, root.propagate = list(theirs.handlers), False
        root.setLevel(theirs.level or logging.INFO)


def _version() -> str:
    import vllm

    return str(vllm.__version__)


# --- in the first process ---


def _with_settings(original: Callable[..., object]) -> Callable[..., object]:
    def create_engine_config(self: Any, *args: object, **kwargs: object) -> object:
        given = dict(self.additional_config or {})
        settings = _settings_from(given.get(KEY, {}))
        if replaced_worker(self.worker_cls):
            self.worker_cls = "auto"
        self.additional_config = {**given, KEY: msgspec.to_builtins(settings.graph)}
        os.environ[CARRIER] = msgspec.json.encode(settings).decode()
        copied = os.environ.get("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "")
        if CARRIER not in copied:
            os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join(filter(None, [copied, CARRIER, REPLICAS]))
        config: Any = original(self, *args, **kwargs)
        os.environ[REPLICAS] = str(config.parallel_config.data_parallel_size)
        return config

    return create_engine_config


def _settings_from(config: object) -> VllmSettings:
    """Read the user's settings, or return the carried ones if this process has read them before."""
    if not isinstance(config, Mapping):
        raise SettingsError(f"additional_config['{KEY}']: expected an object with settings, found {config!r}")
    carried = os.environ.get(CARRIER)
    if carried and config:
        settings = msgspec.json.decode(carried, type=VllmSettings)
        if msgspec.to_builtins(settings.graph) == config:
            return settings
    return read_settings(_without_prints(config))


def _without_prints(graph: Mapping[str, object]) -> dict[str, object]:
    """Drop the computed fields of GraphSpec, leaving what a user could have written."""
    return {name: value for name, value in graph.items() if name not in GraphSpec.computed}


# --- in the scheduler's process ---


def _with_full_prompt(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def get_skip_reading_prefix_cache(self: Any) -> bool:
        params = self.sampling_params
        if params is not None and params.extra_args and options_of(params.extra_args).get("full_prompt") is True:
            return True
        return original(self)

    return get_skip_reading_prefix_cache


# --- in each worker ---


def _with_session(original: Callable[..., object]) -> Callable[..., object]:
    def init_device(self: Any, *args: object, **kwargs: object) -> object:
        result = original(self, *args, **kwargs)
        worker = self.worker
        load = worker.load_model

        def load_model(*args: object, **kwargs: object) -> object:
            loaded = load(*args, **kwargs)
            watch(worker)
            return loaded

        warm_up, profile = worker.compile_or_warm_up_model, worker.determine_available_memory

        def determine_available_memory(*args: object, **kwargs: object) -> object:
            _read_last(worker)
            return profile(*args, **kwargs)

        def compile_or_warm_up_model(*args: object, **kwargs: object) -> object:
            _read_last(worker)
            with _warming(worker):
                return warm_up(*args, **kwargs)

        dummy = worker.execute_dummy_batch

        def execute_dummy_batch(*args: object, **kwargs: object) -> object:
            session = getattr(worker, "_actscope_session", None)
            if session is not None:
                session.before_dummy()
            return dummy(*args, **kwargs)

        worker.load_model, worker.compile_or_warm_up_model = load_model, compile_or_warm_up_model
        worker.execute_dummy_batch = execute_dummy_batch
        worker.determine_available_memory = determine_available_memory
        for name in _CHANGE_WEIGHTS:
            if hasattr(worker, name):
                setattr(worker, name, _noting_weights(worker, getattr(worker, name)))
        return result

    return init_device


#: Methods of the worker behind which the model's weights may be others, not always by the model's own `load_weights`.
_CHANGE_WEIGHTS = ("update_weights", "finish_weight_update", "reload_weights")


def _noting_weights(worker: object, original: Callable[..., object]) -> Callable[..., object]:
    @wraps(original)
    def change(*args: object, **kwargs: object) -> object:
        try:
            return original(*args, **kwargs)
        finally:
            session = getattr(worker, "_actscope_session", None)
            if session is not None:
                session.weights_changed()

    return change


def _read_last(worker: Any) -> None:
    """Let other plugins' hooks run before ours, in whatever order plugins were loaded. The first pass compiles the model."""
    session = getattr(worker, "_actscope_session", None)
    if session is not None:
        session.read_last()


@contextmanager
def _warming(worker: Any) -> Iterator[None]:
    """Pause the session during warm-up: the V2 runner warms up with dummy requests that look real."""
    session = getattr(worker, "_actscope_session", None)
    if session is None:
        yield
        return
    session.warming = True
    try:
        yield
    finally:
        session.warming = False


def _with_end(original: Callable[..., object]) -> Callable[..., object]:
    def shutdown(self: Any, *args: object, **kwargs: object) -> object:
        _end(getattr(self, "worker", None))
        return original(self, *args, **kwargs)

    return shutdown


def watch(worker: Any) -> None:
    """Attach a session to a worker whose model is loaded.

    If the engine cannot be watched, logs an error and returns. Settings that cannot be met raise SettingsError instead, since no
    request is served yet. Without a sidecar every ActscopeError is raised: such an engine runs only for its rows.
    """
    settings = VllmSettings()
    try:
        from actscope.engines.vllm.session import RunnerSession

        settings = _carried(worker.vllm_config)
        if not is_tested(_version()):
            log.warning(
                "actscope was tested with vLLM %s, this is %s: it is watched all the same", tested_range(), _version()
            )
        _end(worker)
        session = RunnerSession(worker.model_runner, settings, place_of(worker))
    except SettingsError:
        raise
    except ActscopeError as error:
        if not settings.sidecar:
            raise
        log.error("actscope cannot watch this engine and is off: %s", error)
        return
    except Exception:
        log.exception("actscope does not fit this vLLM (%s; tested with %s) and is off", _version(), tested_range())
        return
    worker._actscope_session = session
    atexit.register(session.close)
    _around_passes(worker.model_runner, session)


def _carried(config: Any) -> VllmSettings:
    """Return the settings carried from the first process; if they did not arrive (Ray), rebuild them from here."""
    graph = (config.additional_config or {}).get(KEY, {})
    carried = os.environ.get(CARRIER)
    if carried:
        settings = msgspec.json.decode(carried, type=VllmSettings)
        if msgspec.to_builtins(settings.graph) == graph:
            return settings
    log.warning(
        "settings of the first process have not come along; set ACTSCOPE_* on every node for all but the graph's"
    )
    return read_settings(_without_prints(graph))


def _end(worker: Any) -> None:
    session = getattr(worker, "_actscope_session", None)
    if session is not None:
        atexit.unregister(session.close)
        session.close()
        worker._actscope_session = None


def place_of(worker: Any) -> StagePlacement:
    """Return the worker's StagePlacement. Raises EngineError for features that would make labels or rows uncertain."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    from actscope.engines.vllm.session import StagePlacement

    config = worker.vllm_config
    parallel, compilation = config.parallel_config, config.compilation_config
    refused = {
        "prefill context parallel": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "decode context parallel": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "dual batch overlap (microbatches)": bool(getattr(parallel, "use_ubatching", False)),
        "sequence parallelism": bool(getattr(compilation.pass_config, "enable_sp", False)),
        "adaptive verification of drafts": bool(
            getattr(config.speculative_config, "enable_adaptive_verification", False)
        ),
        "fast prefill with shared KV layers": bool(getattr(config.cache_config, "kv_sharing_fast_prefill", False)),
        "speculative decoding with pipeline stages": config.speculative_config is not None
        and parallel.pipeline_parallel_size > 1,
        "diffusion language models, which denoise a token in several passes": bool(
            getattr(config.model_config, "is_diffusion", False) or getattr(config, "diffusion_config", None)
        ),
        "encoder-decoder models": config.model_config.is_encoder_decoder,
        "pooling models": config.model_config.runner_type != "generate",
    }
    found = [what for what, is_so in refused.items() if is_so]
    if found:
        raise EngineError(
            f"{', '.join(found)}: rows cannot be assigned to requests with certainty yet; turn it off to use actscope"
        )
    pp, tp = get_pp_group(), get_tp_group()
    replica = parallel.data_parallel_index
    return StagePlacement(
        tp.rank_in_group == 0,
        config.instance_id.removesuffix(f"_dp{replica}"),  # Ray's replicas add it to the id of their server
        pp.rank_in_group,
        pp.world_size,
        shared=tp.world_size > 1,
        replica=replica,
        replicas=max(_replicas(parallel), replica + 1),
    )


def _replicas(parallel: Any) -> int:
    """Return the number of data-parallel engines of this server, on all hosts.

    vLLM sets `data_parallel_size` to 1 in each engine of a dense model, so the first process carries the number on.
    """
    carried = os.environ.get(REPLICAS, "")
    return max(int(parallel.data_parallel_size), int(carried) if carried.isdecimal() else 1)


def _around_passes(runner: Any, session: RunnerSession) -> None:
    execute, sample = runner.execute_model, runner.sample_tokens

    def execute_model(scheduled: Any, *args: object, **kwargs: object) -> object:
        if kwargs.get("dummy_run"):
            return execute(scheduled, *args, **kwargs)
        session.before(scheduled)
        session.begun()
        result = execute(scheduled, *args, **kwargs)
        session.after(scheduled)
        return result

    def sample_tokens(*args: object, **kwargs: object) -> object:
        session.sampling()
        result = sample(*args, **kwargs)
        session.sampled()
        return result

    runner.execute_model, runner.sample_tokens = execute_model, sample_tokens
