"""The `streamgen` command. Its subcommands come from the entry-point group `streamgen.commands`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click


class _Commands(click.Group):
    """Loads a subcommand only when it is called, so that `streamgen serve` never imports what training needs."""

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="streamgen.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries().get(cmd_name)
        if entry is None:
            return None
        command: click.Command = entry.load()
        return command


@click.group(cls=_Commands, context_settings={"auto_envvar_prefix": "STREAMGEN", "show_default": True})
@click.version_option(package_name="streamgen")
def main() -> None:
    """Generated video, live."""
