"""The state of a stream: all that is needed to go on with it in another process or on another machine.

It is small (the last clean latents, the conditions that drove them, frame index, seed, and which student it belongs
to); the cache is derived from it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamgen.config import StudentConfig
from streamgen.noise import SEED_LIMIT

_MAGIC = b"SGSTATE\0"
_VERSION = 1
_HEAD = struct.Struct("<8sHI")
_MAX_META_BYTES = 4096


class StateError(ValueError):
    """The bytes are not a state that this program can use; the message says why."""


class _Meta(BaseModel):
    """The header of a state's bytes; the arrays' shapes follow from it and the student's configuration."""

    model_config = ConfigDict(extra="forbid", strict=True)

    student: str
    student_hash: str
    seed: int = Field(ge=0, lt=SEED_LIMIT)
    frame: int = Field(ge=0, lt=2**62)
    history: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream between two blocks.

    student, student_hash: the student that generated the latents.
    seed: of the noise. frame: index of the next frame to generate; the history ends at frame - 1.
    latents: float16 [H, C, h, w], clean and normalised, oldest first, at most `history_frames` of them.
    actions: float32 [H, A], actions[i] drove latents[i].
    sink: float16 [S, C, h, w], the stream's first latents, and sink_actions [S, A]; empty without sinks.
    picture: uint8 [H, W, 3], of the first of them, where the student's decoder looks at it; else empty.
    """

    student: str
    student_hash: str
    seed: int
    frame: int
    latents: NDArray[np.float16]
    actions: NDArray[np.float32]
    sink: NDArray[np.float16]
    sink_actions: NDArray[np.float32]
    picture: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))

    @classmethod
    def begin(
        cls,
        config: StudentConfig,
        student_hash: str,
        seed: int,
        latents: NDArray[np.float16] | None = None,
        actions: NDArray[np.float32] | None = None,
        picture: NDArray[np.uint8] | None = None,
    ) -> StreamState:
        """A stream that goes on from given frames (latents [H, C, h, w], actions [H, A]), or from nothing. picture: of
        the first, where the student's decoder looks at it; None is black.
        """
        shape, width = config.latent_shape, config.action_dim
        if latents is None or actions is None:
            latents, actions = np.zeros((0, *shape), np.float16), np.zeros((0, width), np.float32)
        if latents.shape[1:] != shape or actions.shape != (len(latents), width):
            raise ValueError(
                f"history of latents {latents.shape} and actions {actions.shape}; wanted [H, {shape}] and [H, {width}]"
            )
        # Its own: engines read it where it is, and want it writeable.
        picture = np.zeros(config.picture_shape, np.uint8) if picture is None else picture.copy()
        if picture.shape != config.picture_shape:
            raise ValueError(f"a picture of shape {picture.shape}; wanted {config.picture_shape}")
        empty = cls(config.name, student_hash, seed, 0, latents[:0], actions[:0], latents[:0], actions[:0], picture)
        return empty.extended(config, latents, actions)

    def extended(
        self, config: StudentConfig, latents: NDArray[np.generic], actions: NDArray[np.generic]
    ) -> StreamState:
        """The state after `latents` [F, C, h, w] were generated under `actions` [F, A]."""
        keep, sinks = config.transformer.history_frames, config.transformer.sink
        new_latents, new_actions = latents.astype(np.float16), actions.astype(np.float32)
        missing = max(0, sinks - len(self.sink))
        return StreamState(
            self.student,
            self.student_hash,
            self.seed,
            self.frame + len(new_latents),
            np.concatenate([self.latents, new_latents])[-keep:],
            np.concatenate([self.actions, new_actions])[-keep:],
            np.concatenate([self.sink, new_latents[:missing]]),
            np.concatenate([self.sink_actions, new_actions[:missing]]),
            self.picture,
        )

    def to_bytes(self) -> bytes:
        """Versioned, checksummed bytes; `from_bytes` reads them back."""
        arrays = (self.latents, self.actions, self.sink, self.sink_actions, self.picture)
        meta = (
            _Meta(
                student=self.student,
                student_hash=self.student_hash,
                seed=self.seed,
                frame=self.frame,
                history=len(self.latents),
            )
            .model_dump_json()
            .encode()
        )
        body = (
            _HEAD.pack(_MAGIC, _VERSION, len(meta)) + meta + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
        )
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, config: StudentConfig, student_hash: str) -> StreamState:
        """Read a state of this student.

        Raises StateError when the bytes are damaged, of another version or shape, or belong to another student. The
        checksum finds damage, not forgery: whoever may send a state may also make one up.
        """
        if len(data) < _HEAD.size + 32 or not data.startswith(_MAGIC):
            raise StateError("not a stream state: the bytes do not start like one")
        body, digest = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != digest:
            raise StateError("the stream state is damaged: its checksum does not match; start a new stream")
        _, version, meta_len = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise StateError(f"stream state of version {version}; this program reads version {_VERSION}")
        if meta_len > _MAX_META_BYTES:
            raise StateError(f"the stream state's header claims {meta_len} bytes, more than {_MAX_META_BYTES}")
        try:
            meta = _Meta.model_validate_json(body[_HEAD.size : _HEAD.size + meta_len])
        except ValidationError as error:
            raise StateError(f"the stream state's header cannot be read: {error}") from error
        if (meta.student, meta.student_hash) != (config.name, student_hash):
            raise StateError(
                f"the stream belongs to student {meta.student} ({meta.student_hash[:12]}), "
                f"not to {config.name} ({student_hash[:12]}): open it with that student"
            )
        kept, width = config.transformer.history_frames, config.action_dim
        sinks = min(config.transformer.sink, meta.frame)
        if meta.history > min(kept, meta.frame):
            raise StateError(f"{meta.history} latents at frame {meta.frame}; at most {kept} are kept")
        arrays: list[NDArray[Any]] = []
        offset = _HEAD.size + meta_len
        for shape, dtype in (
            ((meta.history, *config.latent_shape), np.float16),
            ((meta.history, width), np.float32),
            ((sinks, *config.latent_shape), np.float16),
            ((sinks, width), np.float32),
            (config.picture_shape, np.uint8),
        ):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays.append(np.frombuffer(body[offset : offset + size], dtype))
            if arrays[-1].size * np.dtype(dtype).itemsize != size:
                raise StateError("the stream state is shorter than its header says")
            arrays[-1] = arrays[-1].reshape(shape).copy()
            offset += size
        if offset != len(body):
            raise StateError(f"the stream state has {len(body) - offset} bytes more than its header says")
        if not all(np.isfinite(array).all() for array in arrays):
            raise StateError("the stream state holds values that are not finite")
        return cls(meta.student, meta.student_hash, meta.seed, meta.frame, *arrays)
