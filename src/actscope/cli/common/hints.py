"""Hints for unknown flags and commands, from the table of `actscope.near_miss`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from actscope.near_miss import hint, known_as, near_names

if TYPE_CHECKING:
    from typer._click.core import Command, Context

#: The usage error of click. Typer carries a copy of click or needs the package, depending on its version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def add_hints(app: typer.Typer) -> None:
    """Make the commands and groups that are registered so far answer an unknown flag or command with a hint."""
    app.info.cls = HintedGroup
    for command in app.registered_commands:
        command.cls = HintedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            group.cls = HintedGroup
            add_hints(group.typer_instance)


class HintedCommand(TyperCommand):
    """A command that suggests a flag, or the place of an argument, for an unknown flag."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments. The error about an unknown flag ends with a hint."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if hasattr(error, "possibilities"):
                given = str(getattr(error, "option_name", ""))
                what = f"{ctx.command_path} has no option {given}"
                if place := self._argument_meant(given):
                    usage = " ".join([ctx.command_path, *(one for one in self._arguments().values())])
                    vars(error).update(message=f"{what}; {place} is given without a flag: {usage}", possibilities=None)
                else:
                    _tell(error, what, given, self._flags())
            raise

    def _flags(self) -> list[str]:
        return [flag for one in self.params for flag in (*one.opts, *one.secondary_opts) if flag[0] == "-"]

    def _arguments(self) -> dict[str, str]:
        """Return the names of the arguments that have no flag, with how the usage line writes each."""
        return {one.name: one.name.upper() for one in self.params if one.name and one.param_type_name == "argument"}

    def _argument_meant(self, given: str) -> str:
        """Return how the argument is written that an unknown flag names, or "" where a flag is nearer."""
        arguments, flags = self._arguments(), self._flags()
        if known_as(given, flags):
            return ""
        if name := known_as(given, arguments):
            return arguments[name]
        near = [] if near_names(given, flags)[0] else near_names(given, arguments)[0]
        return arguments[near[0]] if near else ""


class HintedGroup(TyperGroup):
    """A group of commands that suggests a command for an unknown one."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command. The error about an unknown command ends with a hint."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            _tell(error, f"{ctx.command_path} has no command {args[0]!r}", args[0], self._commands())
            raise

    def _commands(self) -> list[str]:
        """Return the names of the commands, and of those in groups with the group's name before them."""
        groups = {name: one for name, one in self.commands.items() if isinstance(one, TyperGroup)}
        return [*self.commands, *(f"{name} {inner}" for name, one in groups.items() for inner in one.commands)]


def _tell(error: Exception, what: str, name: str, known: Iterable[str]) -> None:
    """Replace the error's message, and click's own suggestions, which know only today's names."""
    vars(error).update(message=what + hint(name, known), possibilities=None)
