"""API keys: who may open sessions. The server knows their hashes only.

A key is 256 random bits, so its hash needs no salt and no slow function. Guesses are slowed down all the same
(`limits.Guesses`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import click

from server.errors import Refused
from server.limits import ONE_MORE_GUESS_AFTER_S, Guesses

log = logging.getLogger("streamgen.server.keys")

_HASH = re.compile(r"sha256:([0-9a-f]{64})(?:,([1-9]\d{0,3}))?")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the server knows of a key. digest: SHA-256; sessions: how many at once, None for what all keys may."""

    digest: bytes = field(repr=False)
    sessions: int | None = None

    @classmethod
    def parse(cls, text: str) -> ApiKey:
        """Read `sha256:HEX` or `sha256:HEX,SESSIONS`. Raises ValueError, which does not repeat the text."""
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError(
                "give sha256: and 64 hexadecimal digits, as `streamgen key` prints them, not the key itself"
            )
        return cls(bytes.fromhex(match[1]), int(match[2]) if match[2] else None)

    @property
    def name(self) -> str:
        """The beginning of its hash, for logs."""
        return self.digest.hex()[:8]


def read_keys(path: str) -> tuple[ApiKey, ...]:
    """The keys in a file, one on a line; what follows a # is for people. Raises ValueError."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                keys.append(ApiKey.parse(text))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise ValueError(f"{path} holds no key")
    return tuple(keys)


class Keyring:
    """The keys that open sessions; without any, everybody may."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)
        self._guesses = Guesses()

    def check(self, given: str | None, address: str, now_s: float) -> ApiKey | None:
        """The key that was given, from this IP address; None where none is asked for. Raises Refused."""
        if not self._keys:
            return None
        if not given:
            raise Refused(401, "key_needed", "this server asks for an API key: Authorization: Bearer KEY")
        guesses = self._guesses.left(address, now_s)
        if not guesses.left(now_s):
            raise Refused(
                429,
                "too_many_wrong_keys",
                "too many wrong keys came from this address: wait a little",
                retry_after_s=math.ceil(ONE_MORE_GUESS_AFTER_S),
            )
        digest = hashlib.sha256(given.encode()).digest()
        # Every key is compared, so that the time does not tell which one was close.
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            guesses.take(now_s)
            log.warning("a wrong API key from %s", address)
            raise Refused(401, "key_unknown", "the server does not know this API key")
        return found[0]


@click.command()
@click.option("--sessions", type=click.IntRange(1, 1024), help="Sessions at once; default: max_sessions_per_key.")
def key(sessions: int | None) -> None:
    """Make an API key and show it once, with the hash that `serve --api-key` takes. Nothing is kept."""
    made = "sg_" + secrets.token_urlsafe(32)
    limit = f",{sessions}" if sessions else ""
    click.echo(f"key   {made}\nhash  sha256:{hashlib.sha256(made.encode()).hexdigest()}{limit}")
