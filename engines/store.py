"""Where compiled artefacts are kept: keyed by student, engine, version, precision and device, checked before use."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from pathlib import Path
from typing import ClassVar

from engines.protocol import EngineError
from streamgen.paths import cache_root

log = logging.getLogger(__name__)

_MAX_KEY = 200
_PARTIAL = ".partial"
_PARTIAL_S = 3600.0
"""A file that is older was left by a process that died while it wrote."""


class ArtefactStore:
    """Files named by the hash of their key; each starts with the hash of its content.

    refused: how many artefacts the disk did not take, in this process.
    """

    refused: ClassVar[int] = 0

    def __init__(self, root: Path | None = None, most_bytes: int = 8 * 2**30) -> None:
        self.root = root if root is not None else cache_root()
        self.most_bytes = most_bytes

    def path(self, *key: str) -> Path:
        """Where the artefact of a key lies, whether it exists or not."""
        if any(len(part) > _MAX_KEY or "\0" in part for part in key):
            raise EngineError(f"artefact key {key!r}: parts must be at most {_MAX_KEY} characters without NUL")
        return self.root / f"{hashlib.sha256(chr(0).join(key).encode()).hexdigest()}.bin"

    def get(self, *key: str) -> bytes | None:
        """The artefact, or None when there is none; a damaged one is deleted and counts as none."""
        path = self.path(*key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, data: bytes, *key: str) -> bool:
        """Keep an artefact; atomic, so another process sees all of it or nothing.

        False when the disk refuses, which is logged once and counted: it is a cache.
        """
        path = self.path(*key)
        partial = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, suffix=_PARTIAL, delete=False) as file:
                partial = Path(file.name)
                file.write(hashlib.sha256(data).digest() + data)
            partial.replace(path)
        except OSError as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            if not ArtefactStore.refused:
                log.warning("%s takes no artefacts, they will be made again at every start: %s", self.root, error)
            ArtefactStore.refused += 1
            return False
        # Another process may be tidying up too.
        with contextlib.suppress(OSError):
            self._forget_oldest()
        return True

    def _forget_oldest(self) -> None:
        """Keep the newest file, and others up to the store's size: each new student leaves compiled graphs behind."""
        for file in self.root.glob("*" + _PARTIAL):
            if time.time() - file.stat().st_mtime > _PARTIAL_S:
                file.unlink(missing_ok=True)
        files = sorted(self.root.glob("*.bin"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self.most_bytes and file != files[0]:
                file.unlink(missing_ok=True)
