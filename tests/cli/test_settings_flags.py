"""Flags, help and tables come from the settings classes: nothing is missing, and no text or default is written twice."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import typer
from typer.testing import CliRunner

import actscope
from actscope.cli.app import app
from actscope.cli.common import options
from actscope.cli.common.settings_fields import SettingsField, fields_of
from actscope.cli.common.settings_options import Flag, Flags, Given, with_settings
from actscope.errors import SettingsError
from actscope.feed.planning.environment import PREFIX
from actscope.sizes import bytes_text, parse_bytes, parse_count

ALL = {flags.settings.__name__: flags for flags in vars(options).values() if isinstance(flags, Flags)}
WITHOUT_A_FLAG = {
    ("EngineSettings", "model"): "an argument",
    ("EngineSettings", "card_id"): "new at each start",
    ("EngineSettings", "owned"): "for the process that starts the engine",
    ("CaptureConfig", "reason"): "written by presets and auto_config",
    ("AnalysisOptions", "sites"): "a selection, resolved with the recording",
    ("AnalysisOptions", "site"): "SiteOptions has flags",
    ("AnalysisOptions", "graph_options"): "GraphOptions has flags",
}
CLASSES_WITHOUT_FLAGS = {
    "ServingSettings": "base class of GatewaySettings and FeedSettings",
    "EngineOptions": "made from EngineSettings",
    "FlightOptions": "made from EngineSettings and VllmSettings",
    "PipelineOptions": "made from CaptureConfig",
    "StoreOptions": "made from CaptureConfig",
    "VllmSettings": "environment variables: vLLM has its own command line",
    "Options": "fields of a request",
    "RequestOptions": "fields of a request",
    "StreamingOptions": "fields of a request",
    "BatchOptions": "keyword arguments of Batches",
    "CaptureSettings": "keyword arguments of capture; CaptureConfig has the flags",
    "ClientOptions": "keyword arguments of the feed's clients",
    "ScoreOptions": "fields of a request",
    "IterOptions": "keyword arguments of FeedClient.iter",
    "InstrumentationConfig": "an older tool's name for CaptureConfig, in Python only",
}


def every_option(group: Any) -> Iterator[Any]:
    """The options of all commands, those of groups included."""
    for command in group.commands.values():
        yield from every_option(command) if hasattr(command, "commands") else command.params


OPTIONS = list(every_option(typer.main.get_command(app)))
FIELDS = [pytest.param(flags, one, id=f"{name}.{one.name}") for name, flags in ALL.items() for one in flags.fields]


def test_every_settings_class_has_flags_or_a_reason() -> None:
    sources = [path for path in Path(actscope.__file__).parent.rglob("*.py") if path.name != "schemas.py"]
    names = {
        node.name for path in sources for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    }
    found = {name for name in names if re.search(r"(Settings|Options|Config)$", name) and not name.startswith("_")}
    assert found == ALL.keys() | CLASSES_WITHOUT_FLAGS.keys()


def test_every_field_has_a_flag_or_a_reason() -> None:
    missing = {(name, field) for name, flags in ALL.items() for field in flags.without}
    assert missing == WITHOUT_A_FLAG.keys()


@pytest.mark.parametrize(("flags", "one"), FIELDS)
def test_a_flag_has_the_docstring_and_the_default_of_its_field(flags: Flags[Any], one: SettingsField) -> None:
    """In a command that exists; the default that help shows is read as the field's."""
    same = [option for option in OPTIONS if flags.flag(one.name) in option.opts and option.help == one.doc]
    assert one.doc and same
    (parameter,) = (parameter for parameter in flags.parameters() if parameter.name == one.name)
    _, info = get_args(parameter.annotation)
    default = parameter.default
    for read in filter(None, [info.parser]):
        default = [read(item) for item in default] if isinstance(default, list) else read(default)
    if one.default is inspect.Parameter.empty:
        assert default is None
    else:
        kind: Any = type(one.default)
        assert one.default is None or kind(default) == one.default


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    """After a change of a settings class: make tables."""
    script = Path(__file__).parents[2] / "scripts/settings_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_variables_of_the_feed_are_the_ones_that_it_reads() -> None:
    assert options.FEED.variables == PREFIX


def test_help_and_completion_load_no_codec_no_store_and_no_model() -> None:
    """All flags of all commands are made from classes that load without the extras of those commands."""
    code = (
        "import sys, typer, actscope.cli.app as cli; typer.main.get_command(cli.app);"
        "print([m for m in ('torch', 'transformers', 'fastapi', 'mcap', 'zstandard', 'crc32c', 'lz4') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass(frozen=True)
class Base:
    port: int = 1
    """Port to listen on."""
    token: str = ""
    """Overridden."""


@dataclass(frozen=True)
class Lamp(Base):
    """A lamp."""

    port: int = 2
    colour: Literal["red", "blue"] = "red"
    """Colour of
    the light."""
    buffer_bytes: int = 16 << 20
    """Size of its buffer."""
    pause_seconds: float = 60.0
    """Pause between flashes."""
    names: tuple[str, ...] = ()
    """Name. Repeatable."""
    limit: int | None = None
    """Number of flashes."""
    steady: bool = False
    """Do not flash."""
    bright: bool = True
    """Shine brightly."""

    def __post_init__(self) -> None:
        if self.port == 13:
            raise SettingsError("lamp port: expected another one, found 13")


LAMP = Flags(Lamp, {"names": Flag("--name"), "port": Flag(env="LAMP_PORT"), "pause_seconds": Flag("--pause-ms", "MS")})


def lamp(*arguments: str, env: dict[str, str] | None = None) -> tuple[Given, str]:
    """What a command with the flags of a lamp received, and what it printed."""
    received: Given = {}
    lamps = typer.Typer(rich_markup_mode=None)

    @lamps.command()
    @with_settings
    def light(flags: Annotated[Given, LAMP], loud: bool = False) -> None:
        """Light it."""
        nonlocal received
        received = flags
        LAMP.make(flags)

    done = CliRunner().invoke(lamps, arguments, env=env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return received, done.output


def test_fields_have_own_ones_first_and_the_docstring_nearest_to_the_class() -> None:
    """A field without a docstring has that of the base class."""
    docs = {one.name: one.doc for one in fields_of(Lamp)}
    assert [*docs][:1] == ["colour"] and [*docs][-2:] == ["port", "token"]
    assert (docs["colour"], docs["port"]) == ("Colour of the light.", "Port to listen on.")


def test_a_command_receives_only_what_was_given() -> None:
    """In the field's type, sizes and counts as people write them. Defaults are the class's own."""
    assert lamp() == ({}, "")
    given, _ = lamp(
        *("--port", "3k", "--buffer-bytes", "2MB", "--name", "a", "--name", "b", "--steady", "--no-bright"),
        *("--colour", "blue", "--pause-ms", "2.5", "--limit", "7"),
    )
    expected = {"port": 3000, "buffer_bytes": 2_000_000, "names": ("a", "b"), "steady": True, "bright": False}
    assert given == expected | {"colour": "blue", "pause_seconds": 2.5, "limit": 7}
    assert lamp(env={"LAMP_PORT": "9"})[0] == {"port": 9}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--colour", "green"), "blue"),
        (("--port", "many"), "expected a whole number"),
        (("--buffer-bytes", "large"), "expected e.g. 2GB"),
        (("--pause-ms", "long"), "--pause-ms"),
    ],
)
def test_a_value_of_another_type_is_a_usage_error(arguments: tuple[str, ...], says: str) -> None:
    """It names the flag, and what was expected."""
    received, printed = lamp(*arguments)
    assert received == {} and "Usage:" in printed and arguments[0] in printed and says in printed


def test_a_value_that_the_settings_refuse_is_told_with_its_flag() -> None:
    with pytest.raises(SettingsError, match=r"found 13 \(set by --port\)"):
        lamp("--port", "13")


def test_help_shows_units_choices_and_defaults() -> None:
    _, printed = lamp("--help")
    for words in (
        "Colour of the light.",
        "red|blue",
        "--buffer-bytes SIZE",
        "[default: 16MiB]",
        "--bright / --no-bright",
    ):
        assert words in printed
    assert "--no-steady" not in printed and "LAMP_PORT" in printed and re.search(r"--pause-ms MS .*\n?.*60\]", printed)


@pytest.mark.parametrize("size", [0, 1, 999, 4096, 10**9, 1 << 30, 5 << 30, 3 * 10**6])
def test_a_size_is_read_as_it_is_shown(size: int) -> None:
    assert parse_bytes(bytes_text(size)) == size


def test_counts_are_exact() -> None:
    """Also above 2^53, where a float is not."""
    assert [parse_count(text) for text in ("9007199254740993", "-3", "64k", "64Ki", "1.5M", "2e6")] == [
        9007199254740993, -3, 64_000, 65_536, 1_500_000, 2_000_000,
    ]  # fmt: skip
