"""Contact sheets: pictures that a person looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def line_sheet(curves: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]], path: Path) -> None:
    """Write curves over their frames as one PNG, a row each: what is true, and what was said."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 2 * len(curves)), layout="constrained")
    for axes, (name, (truth, said)) in zip(
        figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True
    ):
        axes.plot(truth, label="true")
        axes.plot(said, label="said")
        axes.set_ylabel(name)
    figure.axes[0].legend(loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
