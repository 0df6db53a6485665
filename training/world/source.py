"""A reproducible, endless stream of clips for training, and clips that training never sees."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from training.world.recorder import Clip, WorldRecorder

HELD_OUT_SEED = 2**31
"""Seeds below are for training, this one is for evaluation only."""
JOIN_S = 5.0


def clip_for(seed: int, index: int, length: int) -> Clip:
    """The clip number `index` (from 0) that `ClipSource(seed, length)` yields, recorded here and now."""
    _check_seed(seed)
    with WorldRecorder(seed) as recorder:
        return recorder.record(length, episode=index)


def held_out(count: int, length: int, first: int = 0) -> list[Clip]:
    """`count` clips of `length` frames from episode `first` of the seed that no ClipSource accepts; always the same."""
    with WorldRecorder(HELD_OUT_SEED) as recorder:
        return [recorder.record(length, episode=first + index) for index in range(count)]


class ClipSource:
    """Yields clips start, start + 1, ... of `seed`, each of `length` frames, recorded by `workers` processes.

    Worker k records every `workers`-th clip, so the order does not depend on who is faster. Each worker is at most one
    clip ahead: it waits with that clip at its pipe. A pipe, since a worker notices when its reader is gone.
    """

    def __init__(self, seed: int, length: int, workers: int = 1, start: int = 0) -> None:
        """Raises ValueError for a seed out of range or no workers."""
        _check_seed(seed)
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}")
        self._index = start
        self._start = start
        self._readers: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for first in range(workers):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(writer, seed, length, start + first, workers), daemon=True)
            process.start()
            writer.close()  # only the worker holds it now: its end is our end of file
            self._readers.append(reader)
            self._processes.append(process)

    def __iter__(self) -> Iterator[Clip]:
        return self

    def __next__(self) -> Clip:
        """The next clip; StopIteration once closed, RuntimeError when the worker has died."""
        if not self._readers:
            raise StopIteration
        worker = (self._index - self._start) % len(self._readers)
        try:
            clip: Clip = self._readers[worker].recv()
        except EOFError:
            process = self._processes[worker]
            process.join(JOIN_S)
            raise RuntimeError(
                f"recording worker {worker} ended with exit code {process.exitcode} before clip {self._index}; "
                "its own message is on stderr"
            ) from None
        self._index += 1
        return clip

    def close(self) -> None:
        """End the workers; may be called any number of times."""
        for reader in self._readers:
            reader.close()
        for process in self._processes:
            process.join(JOIN_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._readers, self._processes = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_seed(seed: int) -> None:
    if not 0 <= seed < HELD_OUT_SEED:
        raise ValueError(f"a training seed lies in 0..{HELD_OUT_SEED - 1}, got {seed}")


def _work(writer: Connection, seed: int, length: int, first: int, stride: int) -> None:
    with WorldRecorder(seed) as recorder:
        index = first
        try:
            while True:
                writer.send(recorder.record(length, episode=index))
                index += stride
        except BrokenPipeError:
            return  # the reader is gone
