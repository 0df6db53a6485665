"""API keys: who may open sessions. The server knows their hashes only.

A key is 256 random bits, so its hash needs no salt and no slow function. Guesses are slowed down all the same, for each
address that they come from: while it has used up its tries, not even a right key is looked at, or the limit would only
change what a wrong one is told.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import click

from server.errors import Refused
from server.limits import TokenBucket

log = logging.getLogger("streamgen.server.keys")

_HASH = re.compile(r"sha256:([0-9a-f]{64})(?:,([1-9]\d{0,3}))?")
_TRIES = 10
_ONE_MORE_AFTER_S = 6.0
_MOST_ADDRESSES = 4096
_IPV6_SITE_BITS = 64


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
        self._tries: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(self, given: str | None, address: str, now_s: float) -> ApiKey | None:
        """The key that was given, from this IP address; None where none is asked for. Raises Refused."""
        if not self._keys:
            return None
        if not given:
            raise Refused(401, "key_needed", "this server asks for an API key: Authorization: Bearer KEY")
        tries = self._tries_of(address, now_s)
        if not tries.left(now_s):
            raise Refused(
                429,
                "too_many_wrong_keys",
                "too many wrong keys came from this address: wait a little",
                retry_after_s=math.ceil(_ONE_MORE_AFTER_S),
            )
        digest = hashlib.sha256(given.encode()).digest()
        # Every key is compared, so that the time does not tell which one was close.
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            tries.take(now_s)
            log.warning("a wrong API key from %s", address)
            raise Refused(401, "key_unknown", "the server does not know this API key")
        return found[0]

    def _tries_of(self, address: str, now_s: float) -> TokenBucket:
        """Only addresses that failed lately are worth remembering: the longest unseen goes first."""
        site = _site(address)
        tries = self._tries.setdefault(site, TokenBucket(1 / _ONE_MORE_AFTER_S, _TRIES, now_s))
        self._tries.move_to_end(site)
        if len(self._tries) > _MOST_ADDRESSES:
            self._tries.popitem(last=False)
        return tries


def _site(address: str) -> str:
    """An IPv4 address, or the network of an IPv6 one: whoever has one of its addresses has them all."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_SITE_BITS), strict=False))


@click.command()
@click.option("--sessions", type=click.IntRange(1, 1024), help="Sessions at once; default: max_sessions_per_key.")
def key(sessions: int | None) -> None:
    """Make an API key and show it once, with the hash that `serve --api-key` takes. Nothing is kept."""
    made = "sg_" + secrets.token_urlsafe(32)
    limit = f",{sessions}" if sessions else ""
    click.echo(f"key   {made}\nhash  sha256:{hashlib.sha256(made.encode()).hexdigest()}{limit}")
