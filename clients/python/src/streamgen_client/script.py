"""Key scripts: which keys are held for how long, as a text file.

# walk, then turn while walking, then stand
2.0 KeyW
1.0 KeyW ArrowLeft
0.5
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamgen_client.errors import ClientError

_LONGEST_S = 86_400

Line = tuple[float, frozenset[str]]
"""Seconds, and the keys that are held for so long."""


class ScriptError(ClientError, ValueError):
    """The script cannot be used; the message names the line."""


def read_script(path: Path, keys: Sequence[str]) -> list[Line]:
    """The lines of a script for a student that knows these keys. Raises ScriptError."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        words = text.partition("#")[0].split()
        if not words:
            continue
        try:
            seconds = float(words[0])
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= _LONGEST_S:
            raise ScriptError(f"{path} line {number}: {words[0]!r} is not a number of seconds from 0 to {_LONGEST_S}")
        unknown = [code for code in words[1:] if code not in keys]
        if unknown:
            raise ScriptError(f"{path} line {number}: unknown key {unknown[0]}; this student knows {', '.join(keys)}")
        lines.append((seconds, frozenset(words[1:])))
    if length_s(lines) == 0:
        raise ScriptError(f"{path}: no line lasts longer than 0 seconds")
    return lines


def length_s(lines: Sequence[Line]) -> float:
    """How long the script is."""
    return sum(seconds for seconds, _ in lines)


def changes(lines: Sequence[Line], until_s: float) -> Iterator[Line]:
    """When, from the start, which keys are to be held; the script is repeated or cut at until_s."""
    at_s = 0.0
    for seconds, held in itertools.cycle(lines):
        if at_s >= until_s:
            return
        if seconds > 0:
            yield at_s, held
        at_s += seconds
