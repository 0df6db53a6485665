"""A random player: holds keys for a while, taps them, turns full circles, walks far, gets away from walls, hunts."""

import numpy as np
from numpy.typing import NDArray

FORWARD, BACK, LEFT, RIGHT, FIRE = range(5)
STUCK_UNITS = 6.0  # map units per frame; a walk reaches 14, and sliding along a wall shows little but the wall
STUCK_FRAMES = 7
AIM_DEG = 4.0  # a wisp less far off is flashed at; one frame turns by 5 degrees


class StickyPolicy:
    """Draws key vectors [5] (0/1, in the order of WORLD_KEYS) frame by frame.

    A mixture of behaviours, each kept for a random number of frames: idling, one key, combinations, quick taps,
    mashing, long turns, long walks, hunts. Opposite keys together (which cancel out) occur only while mashing.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._plan: list[NDArray[np.uint8]] = []
        self._hunt = 0  # frames before the hunt is given up
        self._search = LEFT  # the side to which it turns while no wisp is in view
        self._stuck = 0
        self._keys = np.zeros(5, np.uint8)

    def next(self, moved: float, wisp: float | None = None) -> NDArray[np.uint8]:
        """The keys for the next frame.

        `moved` says how far the last frame moved the player (map units), `wisp` how far to the left of the middle the
        wisp next to it is (degrees), if any is in view.
        """
        walking = bool(self._keys[FORWARD] != self._keys[BACK])
        self._stuck = self._stuck + 1 if walking and moved < STUCK_UNITS else 0
        if self._stuck >= STUCK_FRAMES:
            self._stuck = 0
            self._plan = self._escape()
        if not self._plan:
            self._plan = self._chase(wisp) if self._hunt > 0 else self._behaviour()
        self._keys = self._plan.pop(0)
        return self._keys.copy()

    def _hold(self, *keys: int, frames: int) -> list[NDArray[np.uint8]]:
        vector = np.zeros(5, np.uint8)
        vector[list(keys)] = 1
        return [vector] * frames

    def _frames(self, mean: float) -> int:
        return 1 + int(self._rng.geometric(1 / mean))

    def _side(self) -> int:
        return LEFT if self._rng.random() < 0.5 else RIGHT

    def _escape(self) -> list[NDArray[np.uint8]]:
        """Back off from whatever is in the way (or walk off from what is behind), turn, and go."""
        away = BACK if self._keys[FORWARD] else FORWARD
        side, rng = self._side(), self._rng
        plan = self._hold(away, side, frames=int(rng.integers(4, 10))) if rng.random() < 0.6 else []
        plan += self._hold(side, frames=int(rng.integers(12, 36)))
        return plan + self._hold(FORWARD, frames=self._frames(12))

    def _behaviour(self) -> list[NDArray[np.uint8]]:
        rng, draw = self._rng, self._rng.random()
        if draw < 0.02:  # as a viewer who looks, before finding the keys
            return self._hold(frames=int(rng.integers(40, 120)))
        if draw < 0.12:
            return self._hold(frames=self._frames(12))
        if draw < 0.28:  # a hunt: turn until a wisp is ahead, and flash
            self._hunt, self._search = int(rng.integers(20, 60)), self._side()
            return self._hold(self._search, frames=1)
        if draw < 0.37:  # a tap of one key, one or two frames, out of stillness or out of a walk
            base = () if rng.random() < 0.6 else (FORWARD,)
            key = int(rng.integers(5))
            before, after = self._hold(*base, frames=int(rng.integers(1, 6))), self._hold(*base, frames=self._frames(5))
            return before + self._hold(*{*base, key}, frames=int(rng.integers(1, 3))) + after
        if draw < 0.42:  # mashing
            plan = []
            for _ in range(int(rng.integers(2, 6))):
                mashed = np.flatnonzero(rng.random(5) < 0.35)
                plan += self._hold(*mashed.tolist(), frames=int(rng.integers(1, 5)))
            return plan
        if draw < 0.46:  # a long turn, up to a full circle and a bit
            return self._hold(self._side(), frames=int(rng.integers(24, 80)))
        if draw < 0.57:  # a straight walk
            return self._hold(FORWARD, frames=int(rng.integers(15, 45)))
        if draw < 0.63:  # stand and turn
            return self._hold(self._side(), frames=self._frames(8))
        if draw < 0.73:
            return self._hold(FIRE, *([self._side()] if rng.random() < 0.3 else []), frames=int(rng.integers(1, 14)))
        keys = {BACK} if rng.random() < 0.3 else {FORWARD}  # walking in a curve, sometimes firing
        if rng.random() < 0.75:
            keys.add(self._side())
        if rng.random() < 0.3:
            keys.add(FIRE)
        return self._hold(*keys, frames=self._frames(9))

    def _chase(self, wisp: float | None) -> list[NDArray[np.uint8]]:
        """The next moment of a hunt: a step of turning, or the flash that ends it."""
        if wisp is not None and abs(wisp) < AIM_DEG:
            self._hunt = 0
            flash, watch = int(self._rng.integers(1, 4)), self._frames(8)
            return self._hold(FIRE, frames=flash) + self._hold(frames=watch)
        self._hunt -= 1
        side = self._search if wisp is None else LEFT if wisp > 0 else RIGHT
        return self._hold(side, *([FORWARD] if self._rng.random() < 0.3 else []), frames=1)
