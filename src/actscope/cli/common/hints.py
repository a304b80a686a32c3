"""Hints for unknown flags and commands, from the table of `actscope.near_miss`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from actscope.near_miss import hint

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
    """A command that suggests a flag for an unknown one."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments. The error about an unknown flag ends with a hint."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if hasattr(error, "possibilities"):
                flags = [flag for one in self.params for flag in (*one.opts, *one.secondary_opts)]
                given = str(getattr(error, "option_name", ""))
                _tell(error, f"{ctx.command_path} has no option {given}", given, (f for f in flags if f[0] == "-"))
            raise


class HintedGroup(TyperGroup):
    """A group of commands that suggests a command for an unknown one."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command. The error about an unknown command ends with a hint."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            _tell(error, f"{ctx.command_path} has no command {args[0]!r}", args[0], self.commands)
            raise


def _tell(error: Exception, what: str, name: str, known: Iterable[str]) -> None:
    """Replace the error's message, and click's own suggestions, which know only today's names."""
    vars(error).update(message=what + hint(name, known), possibilities=None)
