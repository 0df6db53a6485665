"""Pictures of whom an avatar is to be."""

from __future__ import annotations

import asyncio
import base64
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from server.errors import Refused
from server.limits import ONE_MORE_GUESS_AFTER_S, Guesses
from streamgen.student import Reference, Student

if TYPE_CHECKING:
    from engines.reference import References

_MOST_WAITING = 4
_RETRY_S = 2


class Likenesses:
    """Reads pictures off the event loop, one at a time and on one core: whoever plays needs the others. The files are
    not kept.
    """

    def __init__(self) -> None:
        # Not on a pool whose work counts as what showing a stream costs.
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="likeness")
        self._waiting = 0
        self._readers: dict[str, References] = {}
        self._unfit = Guesses()

    async def read(self, student: Student, text: str, address: str, now_s: float) -> Reference:
        """What the student makes of a file in base64, from this IP address: it has as many that do not fit as wrong
        guesses, since nothing else limits those. Raises Refused.
        """
        unfit = self._unfit.left(address, now_s)
        if not unfit.left(now_s):
            message = "too many pictures that do not fit came from this address: wait a little"
            raise Refused(429, "too_many_pictures", message, retry_after_s=math.ceil(ONE_MORE_GUESS_AFTER_S))
        if self._waiting >= _MOST_WAITING:
            raise Refused(503, "full", f"{_MOST_WAITING} pictures wait to be looked at already", _RETRY_S)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reads, self._read, student, text)
        except ValueError as error:
            unfit.take(now_s)
            raise Refused(422, "unfit_reference", f"reference: {error}") from error
        finally:
            self._waiting -= 1

    def _read(self, student: Student, text: str) -> Reference:
        """Raises ValueError."""
        from engines.reference import References  # with OpenVINO, which this process needs for nothing else

        file = base64.b64decode(text, validate=True)
        return self._readers.setdefault(student.hash, References(student)).read(file)

    def close(self) -> None:
        self._reads.shutdown(cancel_futures=True)
