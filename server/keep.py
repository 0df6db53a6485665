"""The file in which sessions wait while the server restarts.

Of tokens and API keys it holds only the hashes: who reads it cannot take a session over. It is removed as it is read,
so that no stream goes on twice from the same place.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

SESSIONS = "sessions.safetensors"
_VERSION = 1


class KeepError(ValueError):
    """The file cannot be read back; the message says why."""


class KeptSession(BaseModel):
    """A session between two servers.

    token_hash, key_hash: SHA-256, hexadecimal, of its token and of the API key that it was opened with. elapsed_us: on
    its media clock. reference: of a picture that it began from, as `reference_text` has it. state:
    `StreamState.to_bytes`, which stands beside the JSON of the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    token_hash: str = Field(pattern="^[0-9a-f]{64}$")
    key_hash: str | None
    student: str
    identity: str | None = None
    reference: str | None = None
    generation: int = Field(ge=0)
    elapsed_us: int = Field(ge=0)
    paused: bool
    expires_at: AwareDatetime
    state: bytes = Field(b"", exclude=True)


_SESSIONS = TypeAdapter(list[KeptSession])


def write_sessions(folder: Path, sessions: Sequence[KeptSession]) -> None:
    """Write them for the next server, all or nothing, readable by this user alone. Raises OSError."""
    states = {session.id: np.frombuffer(session.state, np.uint8) for session in sessions}
    metadata = {"version": str(_VERSION), "sessions": _SESSIONS.dump_json(list(sessions)).decode()}
    path = folder / SESSIONS
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(save(states, metadata))
    part.replace(path)


def take_sessions(folder: Path) -> list[KeptSession]:
    """What the server before has left, and no longer there. Raises KeepError."""
    path = folder / SESSIONS
    if not path.exists():
        return []
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(_VERSION):
                raise KeepError(f"{path} is of version {metadata.get('version')}; this program reads {_VERSION}")
            records = [
                record | {"state": file.get_tensor(record["id"]).tobytes()}
                for record in json.loads(metadata["sessions"])
            ]
        sessions = _SESSIONS.validate_python(records)
    except (SafetensorError, KeyError, TypeError, ValidationError, json.JSONDecodeError, KeepError) as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise KeepError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise KeepError(f"{path} cannot be read: {error}") from error
    try:
        # No stream may go on twice.
        path.unlink()
    except OSError as error:
        raise KeepError(f"{path} cannot be removed: {error}") from error
    return sessions
