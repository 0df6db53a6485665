"""A session's frames once more, from its log."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.protocol import Engine, StepRequest
from streamgen.actions import action_vector
from streamgen.config import StudentConfig
from streamgen.session_log import Blocks, Generation, Header, LogError, ReadLog, checksum
from streamgen.state import StreamState
from streamgen.student import Student, reference_from

_STREAM = "replay"


@dataclass(frozen=True, eq=False, slots=True)
class ReplayedBlock:
    """frames: uint8 [F, H, W, 3] RGB, the first of them numbered `frame`. equal: bit for bit what the server sent."""

    generation: int
    frame: int
    frames: NDArray[np.uint8]
    equal: bool


class Comparison:
    """How many replayed blocks are what the server sent. different: generation and frame of the first that is not."""

    def __init__(self) -> None:
        self.blocks = 0
        self.equal = 0
        self.different: tuple[int, int] | None = None

    def watch(self, blocks: Iterator[ReplayedBlock]) -> Iterator[ReplayedBlock]:
        """Hand them on, counted."""
        for block in blocks:
            self.blocks += 1
            self.equal += block.equal
            if not block.equal and self.different is None:
                self.different = block.generation, block.frame
            yield block


def replay(
    engine: Engine, student: Student, log: ReadLog, generation: int | None = None, last: int | None = None
) -> Iterator[ReplayedBlock]:
    """The blocks of a log, from the same seeds, keys, steps and recaches.

    generation: only this one. last: no frames after this number.

    Raises LogError where the log and the student do not belong together, or the log contradicts itself.
    """
    check_student(log.header, student)
    config = student.config
    try:
        for begun, runs in log.generations:
            if generation not in (None, begun.generation):
                continue
            state = _begin(begun, student)
            for run in runs:
                if last is not None and run.frame > last:
                    break
                _check(run, state.frame, config, first=run is runs[0])
                if run.recache:
                    engine.open(_STREAM, state)
                actions = _actions(run, config)
                for crc32 in run.checksums:
                    if last is not None and state.frame > last:
                        break
                    result = engine.step([StepRequest(_STREAM, actions, run.steps)])[0]
                    equal = checksum(result.frames) == crc32
                    yield ReplayedBlock(begun.generation, result.frame, result.frames, equal)
                    state = state.extended(config, result.latents, actions)
    finally:
        engine.close(_STREAM)


def check_student(header: Header, student: Student) -> None:
    """Raises LogError when the log is another student's."""
    if header.student_hash != student.hash:
        raise LogError(
            f"the log is of student {header.student} ({header.student_hash[:12]}), and {student.path} is "
            f"{student.config.name} ({student.hash[:12]}): give the very folder that was served, with --student"
        )


def _begin(begun: Generation, student: Student) -> StreamState:
    if begun.state is None:
        try:
            whom = None if begun.reference is None else reference_from(begun.reference, student.config)
            return student.start(begun.seed, begun.identity, whom)
        except ValueError as error:
            raise LogError(f"generation {begun.generation} cannot be replayed: {error}") from error
    try:
        return StreamState.from_bytes(base64.b64decode(begun.state), student.config, student.hash)
    except ValueError as error:
        raise LogError(f"generation {begun.generation} cannot be replayed: {error}") from error


def _actions(run: Blocks, config: StudentConfig) -> NDArray[np.float32]:
    """What drove each block of a run, [F, A]. Raises LogError."""
    size = config.transformer.block_size
    if config.speech is None:
        return np.tile(action_vector(run.keys, config.keys), (size, 1))
    try:
        return np.frombuffer(base64.b64decode(run.actions or ""), "<f4").reshape(size, config.action_dim)
    except ValueError as error:
        raise LogError(f"the log does not say what drove the blocks from frame {run.frame} on: {error}") from error


def _check(run: Blocks, frame: int, config: StudentConfig, first: bool) -> None:
    wrong = None
    if run.frame != frame:
        wrong = f"frame {frame} should come there"
    elif first and not run.recache:
        wrong = "a generation begins with a recache"
    elif run.steps not in config.step_plans:
        wrong = f"{run.steps} steps; student {config.name} has plans for {sorted(config.step_plans)}"
    elif unknown := set(run.keys) - set(config.keys):
        wrong = f"unknown key {min(unknown)}; student {config.name} knows {', '.join(config.keys)}"
    if wrong is not None:
        raise LogError(f"the log's blocks from frame {run.frame} on cannot be replayed: {wrong}")
