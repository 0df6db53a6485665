"""Pictures of whom an avatar is to be."""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import Executor

from engines.reference import PictureError, References
from server.errors import Refused
from streamgen.student import Reference, Student


class Likenesses:
    """Reads pictures off the event loop, one at a time: whoever plays needs the cores. They are not kept."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._readers: dict[str, References] = {}
        self._turn = asyncio.Lock()

    async def read(self, student: Student, text: str) -> Reference:
        """What the student makes of a file in base64. Raises Refused."""
        reader = self._readers.setdefault(student.hash, References(student))
        try:
            file = base64.b64decode(text, validate=True)
            async with self._turn:
                return await asyncio.get_running_loop().run_in_executor(self._pool, reader.read, file)
        except (PictureError, binascii.Error) as error:
            raise Refused(422, "unfit_reference", f"reference: {error}") from error
