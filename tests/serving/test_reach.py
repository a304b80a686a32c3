"""A server that others can reach says so, and its limits can be set in every way."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.cli.common import options
from actscope.cli.common.servers import announce
from actscope.errors import SettingsError
from actscope.gateway.settings import GatewaySettings
from actscope.serving.listening import listen
from actscope.serving.settings import ServingSettings

LOOPBACK = ["127.0.0.1", "localhost", "LOCALHOST", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "127.0.0.2", "127.1"]
EVERYWHERE = ["0.0.0.0", "::", "0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0", "0x0"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_server_on_loopback_is_open_to_this_machine_alone(host: str) -> None:
    assert ServingSettings(host=host).reach == ""


@pytest.mark.parametrize("host", [*EVERYWHERE, "10.0.0.7", "my-box", "127.example.org"])
def test_a_server_elsewhere_says_who_can_connect(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal: which machines, what they need, and what browsers need."""
    announce(GatewaySettings(host=host), "a model", browser=False)
    said = capsys.readouterr().err
    assert "open to  " in said
    assert "token" in said
    assert "--allow-host NAME:PORT" in said
    announce(GatewaySettings(host=host, allowed_hosts=("my-box:6969",)), "a model", browser=False)
    assert "browsers under my-box:6969" in capsys.readouterr().err


@pytest.mark.parametrize("host", EVERYWHERE)
def test_a_server_on_every_address_says_so_and_is_linked_by_loopback(host: str) -> None:
    settings = ServingSettings(host=host)
    assert settings.reach.startswith("every machine")
    assert settings.url == "http://127.0.0.1:6969"


@pytest.mark.parametrize(
    ("host", "url"),
    [("0:0:0:0:0:0:0:1", "[::1]"), ("::ffff:127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("my-box", "my-box")],
)
def test_a_link_names_the_address_in_its_usual_form(host: str, url: str) -> None:
    """`Host` of the browser's requests is compared with it."""
    assert ServingSettings(host=host).url == f"http://{url}:6969"


@pytest.mark.parametrize("host", ["", " ", "http://x", "[::1]", "a b", "127.0.0.1 x", "x\0", "\u65e5", "-x"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    """Before, "" listened on every address and said nothing."""
    with pytest.raises(SettingsError, match="host: expected"):
        ServingSettings(host=host)


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "::ffff:1:2:3:4:5:6:7"])
def test_a_host_that_cannot_be_bound_is_an_error_of_settings(host: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        listen(ServingSettings(host=host, port=0))


@pytest.mark.parametrize("command", ["serve", "gateway"])
@pytest.mark.parametrize("name", options.LIMITS)
def test_every_limit_has_a_flag_and_a_variable(command: str, name: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
    assert f"--{name.replace('_', '-')}" in result.stdout
    assert f"ACTSCOPE_{name.upper()}" in result.stdout


def test_the_limits_are_above_those_of_vllm() -> None:
    """vLLM takes 256 sequences at once on a large GPU, and 128 or 256 of them by default."""
    settings = GatewaySettings()
    assert settings.max_in_flight >= 16384
    assert settings.max_n >= 8192
    assert settings.max_body_bytes >= 64 << 20


@pytest.mark.parametrize("field", ["head_seconds", "body_seconds", "max_unauthenticated", "max_body_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    if value != value and field.startswith("max_"):
        pytest.skip("a whole number")
    with pytest.raises(SettingsError, match=field):
        ServingSettings(**{field: value})  # type: ignore[arg-type]
