"""Command options made from settings classes: one flag for each field, with the field's type, default and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import typer

from actscope.cli.common.settings_fields import SettingsField, fields_of
from actscope.errors import SettingsError
from actscope.sizes import bytes_text, parse_bytes, parse_count

S = TypeVar("S")
#: Settings that were given on the command line or in the environment, by the name of the field.
Given = Mapping[str, Any]
Reader = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Flag:
    """The ways in which a flag differs from its field."""

    name: str = ""
    """The flag. Empty: the field's name, as in `--buffer-rows`."""
    metavar: str = ""
    """Placeholder of the value. Empty: chosen by the type."""
    read: Reader | None = None
    """Conversion of the typed text to the field's value. None: chosen by the type."""
    default: object = None
    """Default in the flag's own unit, or its description where the class computes it. None: the field's default."""
    env: str = ""
    """Environment variable that also sets it."""


@dataclass(frozen=True, slots=True)
class Flags(Generic[S]):
    """Flags for the fields of a settings class. Annotate a parameter of a command with it (see `with_settings`)."""

    settings: type[S]
    special: Mapping[str, Flag] = field(default_factory=dict)
    """Flags that differ from their field, by the field's name."""
    without: tuple[str, ...] = ()
    """Fields without a flag."""
    variables: str = ""
    """Prefix of the environment variables that set the fields, where the settings' own room reads them."""

    def only(self, *names: str) -> Flags[S]:
        """Return the flags of these fields only."""
        return replace(self, without=tuple(one.name for one in self.all_fields if one.name not in names))

    @property
    def all_fields(self) -> tuple[SettingsField, ...]:
        """Return all fields of the settings class."""
        return fields_of(self.settings)  # type: ignore[arg-type]  # mypy does not see that a type[S] is hashable

    @property
    def fields(self) -> list[SettingsField]:
        """Return the fields that have a flag."""
        return [one for one in self.all_fields if one.name not in self.without]

    def flag(self, name: str) -> str:
        """Return the flag of a field."""
        return self._special(name).name or f"--{name.replace('_', '-')}"

    def make(self, given: Given, build: Callable[..., S] | None = None, **fixed: Any) -> S:
        """Return the settings with the given and the fixed values.

        Args:
            given: What the command received (see `with_settings`).
            build: Makes the settings from the values. None: the settings class.
            fixed: Values by field. They take precedence.

        Raises:
            SettingsError: A value is refused. The message names its flag.
        """
        try:
            return (build or self.settings)(**{**given, **fixed})
        except SettingsError as error:
            named = [word for word in re.findall(r"\w+", str(error).partition(":")[0]) if word in given]
            if not named:
                raise
            raise SettingsError(f"{error} (set by {self.flag(named[0])})") from error

    def given(self, context: typer.Context, values: dict[str, object]) -> Given:
        """Take the values of these flags out of `values`, and return those that were given. An empty token is not given."""
        taken = {one: values.pop(one.name) for one in self.fields}
        return {
            one.name: tuple(value) if isinstance(value, list) else value
            for one, value in taken.items()
            if getattr(context.get_parameter_source(one.name), "name", "DEFAULT") != "DEFAULT"
            if value or one.default is not inspect.Parameter.empty
        }

    def parameters(self) -> list[inspect.Parameter]:
        """Return one parameter for each flag, in the form that Typer reads."""
        return [self._parameter(one, self._special(one.name)) for one in self.fields]

    def _special(self, name: str) -> Flag:
        return self.special.get(name, Flag())

    def _parameter(self, one: SettingsField, special: Flag) -> inspect.Parameter:
        kind, is_list = _kind(one.type)
        read = special.read or _reader(one.name, kind)
        flag, default = self.flag(one.name), one.default if special.default is None else special.default
        shown: bool | str = True
        if one.default is inspect.Parameter.empty:  # computed or required
            shown, default = str(special.default) if special.default else True, None
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool and default else flag,
            help=one.doc,
            metavar=special.metavar or _metavar(one.name, kind),
            parser=_usage(read) if read and read is not str else None,
            envvar=special.env or None,
            show_default=shown,
        )
        kind = str if read is str else kind
        annotation = list[kind] if is_list else kind  # type: ignore[valid-type]
        return inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_typed(default, read),
            annotation=Annotated[annotation | None if default is None else annotation, option],
        )


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameters of a command that are annotated with `Flags` by one option for each flag, after its own options.

    Such a parameter receives the settings that were given, by the name of the field.
    """
    signature = inspect.signature(command, eval_str=True)
    bundles = {
        name: flags
        for name, parameter in signature.parameters.items()
        for flags in get_args(parameter.annotation)
        if isinstance(flags, Flags)
    }

    @wraps(command)
    def run(ctx: typer.Context, **values: object) -> None:
        given = {name: flags.given(ctx, values) for name, flags in bundles.items()}
        command(**given, **values)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    own = [parameter for name, parameter in signature.parameters.items() if name not in bundles]
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters += [parameter for flags in bundles.values() for parameter in flags.parameters()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _kind(annotation: object) -> tuple[Any, bool]:
    """Return the type of one value, and whether the flag may be repeated."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = get_args(annotation)[0]  # X | None
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    return annotation, False


def _reader(name: str, kind: object) -> Reader | None:
    if kind is not int:
        return None
    return parse_bytes if name.endswith("_bytes") else parse_count


def _typed(default: object, read: Reader | None) -> object:
    """Return a default value as one would type it, which help shows: 1GiB, 60."""
    if isinstance(default, tuple):
        return list(default)
    if isinstance(default, float):
        return f"{default:g}"
    if read is parse_bytes and isinstance(default, int):
        return bytes_text(default)
    return str(default) if read is str else default


def _metavar(name: str, kind: object) -> str | None:
    if kind is bool or get_origin(kind) is Literal:
        return None
    units = {"_bytes": "SIZE", "_seconds": "SECONDS"}
    return next((unit for end, unit in units.items() if name.endswith(end)), "N" if kind in (int, float) else "TEXT")


def _usage(read: Reader) -> Reader:
    """Return a reader for Typer, which reads default values too. A text that cannot be read is a usage error."""

    def parse(value: object) -> object:
        try:
            return read(value) if isinstance(value, str) else value
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse
