"""How often a client may do something."""

from __future__ import annotations


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
