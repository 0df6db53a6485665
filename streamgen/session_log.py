"""The log of a session: what determined its frames, as JSON Lines, so that `streamgen replay` can make them again.

log         the first line: of which student, made on what, and how much the log had no room for
generation  the stream began, or began anew, from this seed
blocks      blocks one after another under the same keys and in as many steps, with the CRC-32 of each one's RGB bytes
input       a key edge as it was received
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from streamgen.noise import SEED_LIMIT
from streamgen.student import Reference, reference_text

MOST_BYTES = 16 * 2**20
"""Of one session's log: 12 h of play with a key edge a second, 4 h with four. What comes later is only counted."""

_PART_BYTES = 64 * 1024
_CHECKSUM_DIGITS = 8
_LONGEST_ROW = 1024
"""Blocks: the server's event loop writes a row at once."""

FrameNumber = Annotated[int, Field(ge=0, lt=2**62)]


class LogError(ValueError):
    """The log cannot be read or replayed; the message says where and why."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Header(_Row):
    """left_out_blocks, left_out_inputs: what came after the log was full."""

    type: Literal["log"] = "log"
    version: Literal[1] = 1
    session: str
    student: str
    student_hash: str
    engine: str
    precision: str
    device: str
    left_out_blocks: int
    left_out_inputs: int


class Generation(_Row):
    """frame: number of the first one to be generated. state: base64 of the stream's state there, where it went on from
    another server's; null where it began with the student's own, as this identity where the student has several, or as
    whom a reference shows (base64, as `streamgen.student.reference_text` has it).
    """

    type: Literal["generation"] = "generation"
    generation: int
    seed: int = Field(ge=0, lt=SEED_LIMIT)
    frame: FrameNumber
    state: str | None = None
    identity: str | None = None
    reference: str | None = None


class Blocks(_Row):
    """frame: number of the first one. keys: those held, of the ones that the student knows. actions: base64 of the
    float32 [F, A] that drove a student of speech, whose blocks have a row each.

    recache: the engine's cache was rebuilt from the stream's state before the first block (a new generation, another
    worker), which changes what follows a little. crc32: eight hexadecimal digits for each block.
    """

    type: Literal["blocks"] = "blocks"
    frame: FrameNumber
    keys: tuple[str, ...]
    actions: str | None = None
    steps: int
    recache: bool
    crc32: str = Field(pattern=r"^([0-9a-f]{8})+$")

    @property
    def checksums(self) -> Iterator[int]:
        for at in range(0, len(self.crc32), _CHECKSUM_DIGITS):
            yield int(self.crc32[at : at + _CHECKSUM_DIGITS], 16)


class Input(_Row):
    """frame: the first one that shows it. t: the client's milliseconds. received_s: the server's monotonic clock.

    seq is null for what the server concluded from a later message; code is null where no key moved, or none that was
    to be shown.
    """

    type: Literal["input"] = "input"
    frame: FrameNumber
    viewer: str
    seq: int | None
    t: float
    received_s: float
    code: str | None
    down: bool


_ROW: TypeAdapter[Header | Generation | Blocks | Input] = TypeAdapter(
    Annotated[Header | Generation | Blocks | Input, Field(discriminator="type")]
)


class Edge(Protocol):
    """What the log takes of a key edge, as in Input."""

    @property
    def viewer(self) -> str: ...
    @property
    def seq(self) -> int | None: ...
    @property
    def t(self) -> float: ...
    @property
    def received_s(self) -> float: ...
    @property
    def code(self) -> str | None: ...
    @property
    def down(self) -> bool: ...


def checksum(frames: NDArray[np.uint8]) -> int:
    """CRC-32 of a block's RGB frames [F, H, W, 3]."""
    return zlib.crc32(np.ascontiguousarray(frames).data)


class SessionLog:
    """Writes one. At most MOST_BYTES are kept, the session's beginning: a replay needs it."""

    def __init__(self) -> None:
        self.left_out_blocks = 0
        self.left_out_inputs = 0
        self._reported = 0
        self._text = bytearray()
        self._run: tuple[int, tuple[str, ...], int, bool, str | None] | None = None
        self._checksums = bytearray()

    @property
    def _full(self) -> bool:
        return len(self._text) + len(self._checksums) >= MOST_BYTES

    def begin(
        self,
        generation: int,
        seed: int,
        frame: int,
        state: bytes | None = None,
        identity: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        """The stream begins at `frame`, or goes on there from a state that another server has kept."""
        self._end_run()
        if not self._full:
            text = None if state is None else base64.b64encode(state).decode()
            whom = None if reference is None else reference_text(reference)
            row = Generation(
                generation=generation, seed=seed, frame=frame, state=text, identity=identity, reference=whom
            )
            self._write(row)

    def block(
        self,
        frame: int,
        keys: tuple[str, ...],
        steps: int,
        recache: bool,
        crc32: int,
        actions: NDArray[np.float32] | None = None,
    ) -> None:
        """A block was generated; frame: its first one. actions: what drove it where the keys do not say."""
        if self._full:
            self.left_out_blocks += 1
            return
        text = None if actions is None else base64.b64encode(actions.astype("<f4").tobytes()).decode()
        changed = recache or self._run is None or self._run[1:3] != (keys, steps) or text is not None
        if changed or len(self._checksums) == _LONGEST_ROW * _CHECKSUM_DIGITS:
            self._end_run()
            self._run = frame, keys, steps, recache, text
        self._checksums += b"%08x" % crc32

    def input(self, frame: int, edge: Edge) -> None:
        """A key edge was shown, first by this frame."""
        if self._full:
            self.left_out_inputs += 1
            return
        self._end_run()
        self._write(
            Input(
                frame=frame,
                viewer=edge.viewer,
                seq=edge.seq,
                t=edge.t,
                received_s=edge.received_s,
                code=edge.code,
                down=edge.down,
            )
        )

    def take_left_out(self) -> int:
        """How many blocks and inputs found no room since the last call."""
        left_out = self.left_out_blocks + self.left_out_inputs
        new, self._reported = left_out - self._reported, left_out
        return new

    def parts(self, header: Header) -> Iterator[bytes]:
        """The log until now, in pieces: a whole one for each that reads it slowly would take much memory."""
        self._end_run()
        return self._parts(header, len(self._text))

    def _parts(self, header: Header, end: int) -> Iterator[bytes]:
        yield header.model_dump_json().encode() + b"\n"
        for at in range(0, end, _PART_BYTES):
            yield bytes(self._text[at : min(at + _PART_BYTES, end)])

    def _end_run(self) -> None:
        if self._run is not None:
            frame, keys, steps, recache, actions = self._run
            crc32 = self._checksums.decode()
            self._run, self._checksums = None, bytearray()
            self._write(Blocks(frame=frame, keys=keys, actions=actions, steps=steps, recache=recache, crc32=crc32))

    def _write(self, row: Generation | Blocks | Input) -> None:
        self._text += row.model_dump_json().encode() + b"\n"


@dataclass(frozen=True, slots=True)
class ReadLog:
    """A log that was read: each generation with its blocks."""

    header: Header
    generations: Sequence[tuple[Generation, Sequence[Blocks]]]


def read_log(path: Path) -> ReadLog:
    """Read a log. Raises LogError, which names the line."""
    header: Header | None = None
    generations: list[tuple[Generation, list[Blocks]]] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = _ROW.validate_json(line)
                except ValidationError as error:
                    what = error.errors(include_url=False, include_input=False)[0]
                    where = ".".join(map(str, what["loc"]))
                    raise LogError(f"{path} line {number}: {where}: {what['msg']}: not a session's log") from None
                if isinstance(row, Header) != (header is None):
                    raise LogError(f"{path} line {number}: a log has one header, its first line")
                if isinstance(row, Header):
                    header = row
                elif isinstance(row, Generation):
                    generations.append((row, []))
                elif isinstance(row, Blocks):
                    if not generations:
                        raise LogError(f"{path} line {number}: blocks before the first generation")
                    generations[-1][1].append(row)
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror or error}") from None
    if header is None:
        raise LogError(f"{path}: is empty")
    return ReadLog(header, generations)
