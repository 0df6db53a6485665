"""Contact sheets: pictures that a person looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def contact_sheet(rows: Sequence[NDArray[np.uint8]], path: Path, scale: int = 1) -> None:
    """Write rows of equally sized images, each [n, H, W, 3] uint8, as one PNG; shorter rows are padded with black."""
    longest = max(len(row) for row in rows)
    padded = [np.concatenate([row, np.zeros((longest - len(row), *row.shape[1:]), np.uint8)]) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    picture = Image.fromarray(sheet)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
