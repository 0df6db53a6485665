"""How often a client may do something, and how often an address may guess."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

ONE_MORE_GUESS_AFTER_S = 6.0
_GUESSES = 10
_MOST_REMEMBERED = 4096
_MOST_NAME = 64
_IPV6_SITE_BITS = 64


class TokenBucket:
    """`rate` actions a second on average, `burst` at once. Time is passed in."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at_s = burst, now_s

    def left(self, now_s: float) -> bool:
        """Whether one more is allowed now; it does not count yet."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return self._tokens >= 1

    def take(self, now_s: float) -> bool:
        """Whether one more is allowed now; if so it counts."""
        allowed = self.left(now_s)
        if allowed:
            self._tokens -= 1
        return allowed


class Guesses:
    """How many wrong guesses an IP address has left at each secret: ten at once, then one in six seconds.

    While it has none left, not even a right one should be looked at, or the limit would only change what a wrong one is
    told.
    """

    def __init__(self) -> None:
        self._left: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def left(self, address: str, now_s: float, secret: str = "") -> TokenBucket:
        """Take one from it for each wrong guess. secret: name of what is guessed, where there are several.

        Only who failed lately is worth remembering: the longest unseen goes first.
        """
        key = _site(address), secret[:_MOST_NAME]
        left = self._left.setdefault(key, TokenBucket(1 / ONE_MORE_GUESS_AFTER_S, _GUESSES, now_s))
        self._left.move_to_end(key)
        if len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
        return left


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
