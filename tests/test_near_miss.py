"""An unknown name is answered with the one that was meant, also where it is the name of an older tool."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import typer
from support.capture.harness import model_of
from typer.testing import CliRunner

import actscope
from actscope.capture.auto_config import PURPOSES
from actscope.capture.config import _ALIASES, _OF_CAPTURE, CaptureConfig
from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.presets import PRESETS
from actscope.cli.app import app
from actscope.cli.common.settings_fields import fields_of
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.vllm.settings import VllmSettings, read_settings
from actscope.errors import SettingsError, SiteError, UnknownArgument
from actscope.feed import FeedClient, FeedDataset, FeedSettings
from actscope.feed.planning import presets as feed_presets
from actscope.feed.planning.environment import from_environment
from actscope.gateway import GatewaySettings
from actscope.harvest.settings import HarvestSettings
from actscope.near_miss import HOOK_POINTS, OLD_NAMES, hint, site_for
from actscope.probes.hooks import hooked_site
from actscope.recording.export import ExportOptions
from actscope.recording.importing import ImportOptions
from actscope.recording.reading.recording import Recording
from actscope.sites import Site, select

COMMANDS = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
COMMANDS |= {
    f"{name} {inner}": one
    for name, group in list(COMMANDS.items())
    for inner, one in getattr(group, "commands", {}).items()
}
FLAGS = {opt.lstrip("-").replace("-", "_") for one in COMMANDS.values() for p in one.params for opt in p.opts}
PUBLIC = (
    "actscope", "actscope.analysis", "actscope.client", "actscope.feed", "actscope.gateway", "actscope.harvest",
    "actscope.probes", "actscope.recording.export", "actscope.recording.importing", "actscope.store",
)  # fmt: skip
#: Public callables that Python itself answers: their keywords are fields of results, which users read and do not make, or they
#: are made of schemas, TypedDicts and protocols.
MADE_BY_US = {
    "AnalysisReport", "AsyncScoredStream", "Bank", "Coverage", "Damage", "Edge", "ExportReport", "Feature",
    "FeatureReport", "FeatureSet", "GatewayServer", "Graph", "ImportReport", "LogPosition", "Node", "Probe",
    "ProbeColumn", "ProbeInfo", "ProbedModel", "RecoverReport", "Sae", "Score", "ScoreOptions", "ScoreState",
    "ScoredAsyncOpenAI", "ScoredChatCompletion", "ScoredCompletion", "ScoredOpenAI", "ScoredStream",
    "ScoredToken", "Scores", "SiteStats", "Store", "StoreOptions", "StoreReader", "StoreStats", "Upstream",
    "Watermark", "choose_sites", "log_left_out", "probe_from_json", "score",
}  # fmt: skip


def names_here() -> set[str]:
    """Everything that a hint may suggest: settings, arguments, attributes, flags, commands, presets and values."""
    settings = (
        CaptureConfig,
        EngineSettings,
        FeedSettings,
        GatewaySettings,
        HarvestSettings,
        ExportOptions,
        ImportOptions,
    )
    found = {one.name for kind in settings for one in fields_of(kind)} | set(VllmSettings.__struct_fields__)
    found |= {*_ALIASES, *_OF_CAPTURE, *PRESETS, *PURPOSES, *feed_presets.PRESETS, *COMMANDS, *FLAGS, *actscope.__all__}
    for kind in (FeedClient, Recording, CaptureConfig, actscope.Capture):
        found |= {name for name in dir(kind) if not name.startswith("_")}
        for _, method in inspect.getmembers(kind, inspect.isfunction):
            found |= set(inspect.signature(method).parameters)
    return found | {"full", "sampled:8", "attention", "mlp", "ready_rows", "FeedClient", "analyze", "d_model"}


def test_no_hint_of_the_table_leads_nowhere() -> None:
    """Each name that the table suggests is one of today: of a setting, an argument, a flag, a command, a preset or a value."""
    known = names_here()
    assert {now for old in OLD_NAMES.values() for now in old.now if now not in known} == set()
    assert {name for name, old in OLD_NAMES.items() if not old.now and not old.note} == set()


@pytest.mark.parametrize(
    "old, now",
    [
        ("output_path", "to"), ("layers", "sites"), ("names_filter", "sites"), ("hook_name", "sites"),
        ("output_hidden_states", "sites"), ("resume_from_checkpoint", "resume"),
        ("checkpoint_interval_tokens", "checkpoint_tokens"), ("compression_algorithm", "codec"),
        ("max_memory_gb", "memory"), ("target_throughput_gbps", "throughput"), ("sample_rate", "sample"),
        ("codecs", "codec"),
    ],
)  # fmt: skip
def test_capture_answers_old_keywords_with_todays(old: str, now: str) -> None:
    given: dict[str, Any] = {old: 1}
    with pytest.raises(UnknownArgument, match=rf"did you mean {now}\?"):
        actscope.capture(model_of("llama"), **given)


def test_a_keyword_that_is_not_needed_any_more_is_answered_with_what_to_do() -> None:
    with pytest.raises(UnknownArgument, match="every row has its position, token id and text: leave it out"):
        actscope.capture(model_of("llama"), track_per_token=True)  # type: ignore[call-arg]
    with pytest.raises(UnknownArgument, match="a recording is its own checkpoint"):
        actscope.capture(model_of("llama"), checkpoint_path="x")  # type: ignore[call-arg]


def public_callables() -> Iterator[tuple[str, Any]]:
    for package in PUBLIC:
        for name in import_module(package).__all__:
            found = getattr(import_module(package), name)
            if callable(found) and name not in MADE_BY_US:
                yield f"{package}.{name}", found


@pytest.mark.parametrize("name, call", list(public_callables()))
def test_every_public_call_answers_an_unknown_keyword_in_our_words(name: str, call: Any) -> None:
    """Not with Python's bare TypeError; it still is one."""
    required = [
        parameter
        for parameter in inspect.signature(call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if name == "actscope.client.wrap":
        pytest.importorskip("openai")
    given = {parameter.name: model_of("llama") if parameter.name == "model" else None for parameter in required}
    with pytest.raises(UnknownArgument, match="no_such_keyword"):
        call(**given, no_such_keyword=1)


def test_the_feeds_client_answers_old_keywords_and_methods() -> None:
    with FeedClient("http://127.0.0.1:1", "token") as client:
        with pytest.raises(
            UnknownArgument, match=r"wait_for_data has no argument 'min_samples'; did you mean num_samples\?"
        ):
            client.wait_for_data(min_samples=100)  # type: ignore[call-arg]
        with pytest.raises(AttributeError, match=r"did you mean get_activations_tensor\?"):
            client.get_tensor  # type: ignore[attr-defined]  # noqa: B018
        assert not hasattr(client, "__deepcopy__")
    with pytest.raises(UnknownArgument, match="'prefech'; did you mean prefetch"):
        FeedDataset("http://127.0.0.1:1", "token", batch_size=1, prefech=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "arguments, hinted",
    [
        ("capture m p --output-path x", r"has no option --output-path; did you mean --to\?"),
        ("capture m p --layers 3 --to x", r"did you mean --sites\?"),
        ("capture m p --to x --resume-from-checkpoint", r"did you mean --resume\?"),
        ("capture m p --to x --compression-algorithm zstd", r"did you mean --codec\?"),
        ("capture m p --to x --max-memory-gb=2", r"did you mean --memory\? \(a size, such as \"2GB\"\)"),
        ("capture m p --to x --max-new-tokens 2", r"did you mean --max-tokens\?"),
        ("feed --buffer-size 3", r"did you mean --buffer-rows\?"),
        ("feed --activation-dim 3", r"did you mean --width\?"),
        ("gateway --vllm-url x", r"did you mean --upstream\?"),
        ("export a --to b --fromat npy", r"did you mean --format\?"),
        ("proxy", r"actscope has no command 'proxy'; did you mean gateway\?"),
        ("sidecar", r"did you mean watch\?"),
        ("probe ad x", r"actscope probe has no command 'ad'; did you mean add\?"),
        ("serve --model x", r"no option --model; MODEL is given without a flag: actscope serve MODEL"),
        ("capture --model-name x", r"MODEL is given without a flag: actscope capture MODEL PROMPTS"),
        ("capture m --prompts p", r"PROMPTS is given without a flag"),
        ("info --path x", r"PATH is given without a flag: actscope info PATH"),
        ("replay --recording x", r"DIRECTORY is given without a flag: actscope replay DIRECTORY"),
        ("bench --name ring", r"NAME is given without a flag: actscope bench NAME"),
        ("metrics io --out x", r"did you mean --output\?"),
        ("gateway --url x", r"did you mean --upstream\?"),
        ("export a --to b --type npy", r"did you mean --format\?"),
        ("capture m p --ouput-path x", r"did you mean --to\?"),
        ("tracepoints", r"did you mean metrics io\?"),
        ("system_metrics", r"did you mean metrics system\?"),
        ("analyze_tracepoints", r"did you mean metrics report\?"),
        ("train", r"did you mean probe train\?"),
        ("recrod", r"did you mean capture\?"),
        ("version", r"it is an option: actscope --version"),
    ],
)
def test_the_command_line_answers_old_flags_and_commands(arguments: str, hinted: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments.split(), prog_name="actscope")
    assert result.exit_code == 2

    assert re.search(hinted, result.stderr), result.stderr


def test_an_unknown_flag_that_is_near_nothing_gets_no_hint() -> None:
    result = CliRunner().invoke(app, ["capture", "m", "p", "--zzzzzzzz"], prog_name="actscope")
    assert result.exit_code == 2 and "has no option --zzzzzzzz\n" in result.stderr


def test_presets_purposes_and_granularities_answer_old_values() -> None:
    with pytest.raises(SettingsError, match="did you mean 'fast_capture'"):
        CaptureConfig.preset("fast")
    with pytest.raises(SettingsError, match="did you mean 'debugging'"):
        actscope.auto_config(model_of("llama"), purpose="performance_analysis")
    with pytest.raises(SettingsError, match="did you mean 'sampled:8'"):
        PositionFilter.parse("SAMPLED_SLICES")
    with pytest.raises(SettingsError, match="did you mean 'attention'"):
        PositionFilter.parse("attention_only")
    with pytest.raises(SettingsError, match="did you mean large-scale"):
        feed_presets.feed_settings("large_scale", env={})


def test_variables_and_vllm_settings_answer_old_names() -> None:
    with pytest.raises(SettingsError, match=r"did you mean ACTSCOPE_FEED_BUFFER_ROWS\?"):
        from_environment({"ACTSCOPE_FEED_BUFFER_SIZE": "1"}, plain=False)
    with pytest.raises(SettingsError, match=r"there is no setting 'layers'; did you mean sites\?"):
        read_settings({"layers": "0"}, {})
    with pytest.raises(SettingsError, match=r"did you mean codec\?"):
        read_settings({"compression": "zstd"}, {})


SITES = {
    "blocks.0.hook_resid_post": "layers.0.resid_post",
    "blocks.7.hook_resid_pre": "layers.7.resid_pre",
    "blocks.*.hook_mlp_out": "all.mlp_out",
    "hook_embed": "embed",
    "ln_final.hook_normalized": "final_norm",
    "hidden_states[0]": "embed",
    "hidden_states[3]": "layers.2.resid_post",
    "outputs.hidden_states[-2]": "-2.resid_post",
    "hidden_states[-1]": "final_norm",
    "model.model.layers[3].output": "layers.3.resid_post",
    "model.transformer.h[3].output[0]": "layers.3.resid_post",
    "model.layers.3.input": "layers.3.resid_pre",
    "resid_post": "all.resid_post",
}


@pytest.mark.parametrize("name, own", list(SITES.items()))
def test_sites_of_other_tools_are_answered_with_ours(name: str, own: str) -> None:
    """Where a selection is resolved, and where a full name is parsed. What is suggested can be selected."""
    assert site_for(name) == own
    assert select(own, 24)
    with pytest.raises(SiteError, match=f"did you mean {own}".replace(".", r"\.")):
        select(name, 24)
    with pytest.raises(SiteError, match=f"did you mean {own}".replace(".", r"\.")):
        Site.parse(name)
    with pytest.raises(SiteError, match=f"did you mean {own}".replace(".", r"\.")):
        actscope.capture(model_of("llama"), sites=name)


def test_a_hook_whose_rows_no_site_has_is_answered_with_the_reason() -> None:
    with pytest.raises(SiteError, match="no site reads the stream between attention and MLP"):
        actscope.capture(model_of("llama"), sites="blocks.0.hook_resid_mid")


def test_hints_and_files_of_autoencoders_agree_on_what_a_hook_is() -> None:
    for hook in HOOK_POINTS:
        assert site_for(f"blocks.3.{hook}") == hooked_site(f"blocks.3.{hook}")


def test_a_module_path_of_the_model_is_not_taken_for_another_tools_name() -> None:
    assert site_for("model.layers.3") == "" and site_for("model.layers.*.mlp") == ""
    assert hint("sites", ["zzz"]) == ""


def test_attributes_and_module_names_are_answered() -> None:
    with pytest.raises(AttributeError, match=r"did you mean capture\?"):
        actscope.capture_activations  # noqa: B018
    with pytest.raises(AttributeError, match=r"did you mean with_codec\?"):
        CaptureConfig().with_compression("zstd")  # type: ignore[attr-defined]
