"""`streamgen`'s commands in this process: importing PyTorch and its compiler takes longer than most of what they do."""

from __future__ import annotations

from click.testing import CliRunner, Result

from streamgen.cli import main


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def streamgen(*arguments: object) -> str:
    """What it prints."""
    result = _invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def refusal(*arguments: object) -> str:
    """What it says, of a command that must fail as it does where people gave it what it cannot take."""
    result = _invoke(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return result.output
