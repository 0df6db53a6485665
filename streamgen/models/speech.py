"""From sound to a mouth: what each frame of a talking head should show, read from the mel frames around it.

It sees a window and nothing else, so a long sound, a short piece and a live stream give the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.audio import MEL_BINS
from streamgen.config import SpeechConfig

_HALVINGS = 3


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class SpeechEncoder(nn.Module):
    """Convolutions over a window of mel frames, halved in time three times."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        layers: list[nn.Module] = []
        for channels in (MEL_BINS, *(dim,) * (_HALVINGS - 1)):
            layers += [nn.Conv1d(channels, dim, 4, stride=2, padding=1), _Residual(dim)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Flatten())
        self.out = nn.Linear(dim * config.window // 2**_HALVINGS, config.curves)

    def forward(self, mel_BFTC: Tensor) -> Tensor:
        """Curves [B, F, curves] of windows [B, F, window, MEL_BINS]."""
        x = mel_BFTC.flatten(0, 1).transpose(1, 2)
        out: Tensor = self.out(self.layers(x)).unflatten(0, mel_BFTC.shape[:2])
        return out


def windows(mel_BTC: Tensor, config: SpeechConfig, ends: Tensor) -> Tensor:
    """The windows [B, F, window, MEL_BINS] of frames whose own sound ends before mel frame `ends` [F].

    Raises IndexError where the mel frames do not reach that far.
    """
    first = ends + config.lookahead - config.window
    if int(first.min()) < 0 or int(ends.max()) + config.lookahead > mel_BTC.shape[1]:
        raise IndexError(f"{mel_BTC.shape[1]} mel frames do not hold windows that end at {ends.tolist()}")
    return mel_BTC[:, first[:, None] + torch.arange(config.window)]
