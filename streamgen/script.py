"""Action scripts: which keys are held for how long, as a text file.

# walk, then turn while walking, then stand
2.0 KeyW
1.0 KeyW ArrowLeft
0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamgen.actions import action_vector


class ScriptError(ValueError):
    """The script cannot be used; the message names the line."""


def read_script(path: Path, keys: Sequence[str], fps: float) -> NDArray[np.float32]:
    """The action vectors [F, A] of a script, one for each frame. Raises ScriptError."""
    rows = []
    elapsed_s = 0.0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            seconds = float(words[0])
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= 86_400:
            raise ScriptError(f"{path} line {number}: {words[0]!r} is not a number of seconds from 0 to 86400")
        unknown = [code for code in words[1:] if code not in keys]
        if unknown:
            raise ScriptError(f"{path} line {number}: unknown key {unknown[0]}; this student knows {', '.join(keys)}")
        # Frames are counted from the running total, so that rounding does not add up over the lines.
        first, elapsed_s = round(elapsed_s * fps), elapsed_s + seconds
        rows += [action_vector(words[1:], keys)] * (round(elapsed_s * fps) - first)
    if not rows:
        raise ScriptError(f"{path}: no line lasts as long as a frame")
    return np.stack(rows)
