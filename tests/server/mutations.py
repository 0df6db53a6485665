"""Valid messages made wrong, the same ones for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[A-Za-z][\w-]*')
_ODD_VALUES = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"65536",
    b"99999999999999999999",
    b"9" * 5000,
    b"0.1",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"' + b"x" * 300 + b'"',
    b"[" * 2000,
    b"[" * 2000 + b"]" * 2000,
    b'{"a":' * 2000,
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x99\x82",
    b"",
)

Change = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 40) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    """Duplicate keys and lines, mostly."""
    parts = re.split(rb"(?<=[,{\n])", data)
    at = rng.randrange(len(parts))
    return b"".join([*parts[:at], *[parts[at]] * rng.randint(2, 30), *parts[at + 1 :]])


def _swap(rng: random.Random, data: bytes) -> bytes:
    parts = re.split(rb"(?<=[,{\n])", data)
    rng.shuffle(parts)
    return b"".join(parts)


def _replace(rng: random.Random, data: bytes) -> bytes:
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return data + rng.choice(_ODD_VALUES)
    token = rng.choice(tokens)
    return data[: token.start()] + rng.choice(_ODD_VALUES) + data[token.end() :]


def _noise(rng: random.Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 20)) + data[at:]


_CHANGES: tuple[Change, ...] = (_flip, _truncate, _cut, _repeat, _swap, _replace, _replace, _noise)


def mutated(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """One of the valid messages after one to three changes, or, now and then, as it is."""
    data = rng.choice(valid)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 3))):
        data = rng.choice(_CHANGES)(rng, data) if data else rng.randbytes(8)
    return data
