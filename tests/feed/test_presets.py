"""A feed's settings come from a preset, then the environment, then flags, and a wrong one is told with who gave it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from actscope.errors import SettingsError
from actscope.feed.planning.environment import NAMES, PREFIX
from actscope.feed.planning.host_memory import Machine
from actscope.feed.planning.presets import PRESETS, feed_settings, overview
from actscope.feed.settings import FeedSettings

GB = 10**9


def big() -> Machine:
    return Machine(1000 * GB, 1000 * GB)


def settings(preset: str = "", flags: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> FeedSettings:
    return feed_settings(preset, flags, env or {}, big)


def refused(preset: str = "", flags: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        settings(preset, flags, env)
    return str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_settings(name: str) -> None:
    """Also without a network: what the models of the presets are is known."""
    assert settings(name).buffer_rows >= 1


def test_the_test_preset_needs_no_network_and_little_memory() -> None:
    """The built-in model and text, and less than 2 GB in all, on a machine without a GPU."""
    (line,) = (line for line in overview(Machine(2 * GB, 2 * GB), {"device": "cpu"}, {}) if line.preset == "test")
    assert (line.model, line.dataset, line.fits) == ("actscope/builtin", "builtin", True)


def test_flags_go_before_the_environment_and_that_before_the_preset() -> None:
    """Each of the three is used where the ones before it say nothing."""
    env = {"ACTSCOPE_FEED_WINDOWS": "8", "ACTSCOPE_FEED_SEED": "5"}
    found = settings("test", {"windows": "16", "dtype": None}, env)
    assert (found.windows, found.seed, found.buffer_rows) == (16, 5, 1 << 16)


@pytest.mark.parametrize("preset", ["", "test", "production"])
def test_plain_variables_are_understood_by_the_preset_env_alone(preset: str) -> None:
    """PORT and HOST are names that other programs use too."""
    env = {"PORT": "7000", "BUFFER_SIZE": "1000", "MODEL_NAME": "some/model", "ACTIVATION_DIM": "64"}
    token = {"token": "12345678"}
    assert settings(preset, token, env) == settings(preset, token)
    found = settings("env", {}, env | {"DATASET_NAME": "d", "HOST": "::1"})
    assert (found.port, found.buffer_rows, found.model, found.width) == (7000, 1000, "some/model", 64)
    assert (found.dataset, found.host) == ("d", "::1")


def test_our_own_variable_goes_before_a_plain_one() -> None:
    """ACTSCOPE_FEED_PORT is meant for the feed and nothing else."""
    assert settings("env", {}, {"PORT": "7000", "ACTSCOPE_FEED_PORT": "7001"}).port == 7001


def test_every_setting_has_a_variable() -> None:
    """Every field of FeedSettings, those of any server among them, whatever its type."""
    texts = {int: "7", float: "2.5", bool: "no", str: "12345678", tuple: "a:1, b:2"}
    special = {
        "engine": "vllm",
        "mask": "bos",
        "dtype": "float16",
        "model_dtype": "bfloat16",
        "numa": "local",
        "heartbeat_seconds": "7.5",
        "cors_origins": "http://a,http://b",
        "trust_remote_code": "yes",
    }
    for field in fields(FeedSettings):
        kind = type(getattr(FeedSettings(), field.name))
        text = special.get(field.name, "7000" if field.name == "buffer_rows" else texts[kind])
        found = settings("", {}, {PREFIX + field.name.upper(): text})
        assert getattr(found, field.name) != getattr(FeedSettings(), field.name), field.name
    assert "allowed_hosts" in NAMES


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("1M", 10**6), ("2e6", 2 * 10**6), ("64k", 64_000), ("64Ki", 65_536), ("1.5M", 1_500_000)],
)
def test_numbers_of_rows_may_be_short(text: str, value: int) -> None:
    """As people write them, in thousands or in powers of two."""
    assert settings("", {"buffer_rows": text}).buffer_rows == value


def test_a_buffer_may_be_given_in_bytes_or_as_a_share_of_memory() -> None:
    """A byte size is that of the rows with their labels; a share is of what is left beside the generator."""
    assert settings("", {"buffer_rows": "1GB"}).buffer_rows == GB // (256 * 4 + 20)
    half, whole = (settings("", {"buffer_rows": share}).buffer_rows for share in ("50%", "100%"))
    assert 0.49 < half / whole < 0.51 and 0.9 * 1000 * GB < whole * 1044 < 0.95 * 1000 * GB


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("ACTSCOPE_FEED_WINDOWS", "many", "expected a whole number"),
        ("ACTSCOPE_FEED_WINDOWS", "2.5", "expected a whole number"),
        ("ACTSCOPE_FEED_WINDOWS", "1", "expected at least 2"),
        ("ACTSCOPE_FEED_SHUFFLE", "perhaps", "expected one of"),
        ("ACTSCOPE_FEED_LEASE_SECONDS", "soon", "expected a number"),
        ("ACTSCOPE_FEED_WAIT_SECONDS", "nan", "expected a number"),
        ("ACTSCOPE_FEED_DTYPE", "int8", "float32, bfloat16, float16"),
        ("ACTSCOPE_FEED_BUFFER_ROWS", "1e400", "expected a whole number"),
        ("ACTSCOPE_FEED_BUFFER_ROWS", "0%", "above 0 %"),
        ("ACTSCOPE_FEED_BUFFER_ROWS", "1kB", "not one row"),
        ("ACTSCOPE_FEED_WINDOW", "3", "did you mean ACTSCOPE_FEED_WINDOWS"),
        ("ACTSCOPE_FEED_", "3", "no such setting"),
        ("BUFFER_SIZE", "lots", "expected a whole number"),
        ("PORT", "99999", "0 to 65535"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, says: str) -> None:
    """A message has the variable, what was expected, and near misses of a name."""
    message = refused("env", {}, {variable: text})
    assert variable in message and says in message


def test_a_wrong_flag_is_named_as_it_was_typed() -> None:
    """Also where the environment says something else of the same setting."""
    message = refused("", {"max_samples": "0"}, {"ACTSCOPE_FEED_MAX_SAMPLES": "8"})
    assert "--max-samples" in message and "ACTSCOPE" not in message


def test_a_token_is_never_in_a_message_nor_in_a_representation() -> None:
    """Whether it is accepted or not."""
    for variable in ("ACTSCOPE_TOKEN", "ACTSCOPE_FEED_TOKEN"):
        assert "hunter2" not in refused("", {}, {variable: "hunter2"})
        found = settings("", {}, {variable: "hunter2hunter2"})
        assert found.token == "hunter2hunter2" and "hunter2" not in repr(found)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    """With the one that was perhaps meant."""
    assert "did you mean production" in refused("prodution") and "large-scale" in refused("x")


def test_an_empty_variable_says_nothing() -> None:
    """As unset ones: in compose files they are often empty."""
    assert settings("env", {}, {"PORT": "", "ACTSCOPE_FEED_WINDOWS": ""}).windows == 2
