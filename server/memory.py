"""Memory that the server shares with its worker. It has no name, so nothing is left of it however the two end."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedFrames:
    """Frame slots, uint8 of `shape`, the same memory in the process that made them and in those it spawns with them.

    It can be pickled only on its way into a spawned process, like a pipe's end.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._fd = _unnamed_file(int(np.prod(shape)))
        self._map()

    def close(self) -> None:
        """Give the memory back; `slots` must not be used any more."""
        del self.slots
        os.close(self._fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape, "fd": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shape, self._fd = state["shape"], state["fd"].detach()
        self._map()

    def _map(self) -> None:
        # The array keeps the mapping alive, and ends it when it goes.
        memory = mmap.mmap(self._fd, int(np.prod(self.shape)))
        self.slots: NDArray[np.uint8] = np.frombuffer(memory, np.uint8).reshape(self.shape)


def _unnamed_file(size: int) -> int:
    if sys.platform == "linux":
        fd = os.memfd_create("streamgen-frames")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd
