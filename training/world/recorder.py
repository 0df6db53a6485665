"""Records clips of the arena: frames, the keys that drove them, and where the player stood."""

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import vizdoom
from numpy.typing import NDArray

from streamgen.actions import WORLD_KEYS
from training.data import Clip, Ground
from training.world.arena import (
    ALCOVE_DEPTH,
    EYE,
    FLAME_TICS,
    HALF,
    PLAYER_RADIUS,
    STEP,
    STRETCH,
    WISPS,
    build_arena,
    flames,
    heights,
    is_free,
)
from training.world.guard import write_wrapper
from training.world.policy import StickyPolicy

TICS_PER_S = 35
FRAME_SKIP = 2
FPS = TICS_PER_S / FRAME_SKIP
TURN_DEG_PER_TIC = 2.5
SETTLE_TICS = 24  # the lantern is raised, the fall from a warp over
SPREAD_TICS = 150  # fewer than these more, so that the wisps have gone to other places in every episode

Pose = tuple[float, float, float]


class WorldRecorder:
    """One running engine. A context manager; `close` may be called any number of times.

    The engine ends with this process, however that ends (see guard.py).
    """

    def __init__(self, seed: int, width: int = 160, height: int = 128) -> None:
        """`seed` (0 or more) decides the episodes of `record`; frames are `width` x `height` pixels."""
        self.seed, self.width, self.height = seed, width, height
        self._folder = tempfile.TemporaryDirectory(prefix="streamgen-world-")
        self._game = vizdoom.DoomGame()
        try:
            self._start(Path(self._folder.name))
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path) -> None:
        wad = folder / "arena.wad"
        build_arena(wad)
        game = self._game
        game.set_vizdoom_path(str(write_wrapper(folder, Path(vizdoom.__file__).with_name("vizdoom"))))
        game.set_doom_config_path(str(folder / "engine.ini"))
        game.set_doom_scenario_path(str(wad))
        game.set_doom_map("map01")
        button, variable = vizdoom.Button, vizdoom.GameVariable
        game.set_available_buttons(
            [button.MOVE_FORWARD, button.MOVE_BACKWARD, button.TURN_LEFT_RIGHT_DELTA, button.ATTACK]
        )
        game.set_available_game_variables(
            [variable.POSITION_X, variable.POSITION_Y, variable.ANGLE, variable.CAMERA_POSITION_Z]
        )
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X256)
        game.set_objects_info_enabled(True)  # where the wisps are
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        for hide in (
            game.set_render_hud,
            game.set_render_crosshair,
            game.set_render_messages,
            game.set_render_decals,
            game.set_render_particles,
            game.set_render_screen_flashes,
        ):
            hide(False)
        game.set_render_weapon(True)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        # No bobbing: its phase hangs on the clock, which no frame shows.
        game.add_game_args("+sv_cheats 1 +sv_infiniteammo 1 +movebob 0")
        game.init()

    def record(self, num_frames: int, episode: int) -> Clip:
        """`num_frames` frames of a fresh episode, played by the random policy from a random pose; actions[0] is zero.

        A pure function of (seed, episode, num_frames).
        """
        rng = np.random.default_rng([self.seed, episode])
        clip = self._empty(num_frames)
        self._begin(_random_pose(rng), scene=int(rng.integers(2**31)))
        policy = StickyPolicy(rng)
        state = self._observe(clip, 0)
        moved = math.inf
        for t in range(1, num_frames):
            clip.actions[t] = policy.next(moved, _wisp_ahead(state, clip.poses[t - 1]))
            state = self._step(clip, t)
            moved = math.dist(clip.poses[t, :2], clip.poses[t - 1, :2])
        return clip

    def play(self, actions: NDArray[np.uint8], start: Pose | None = None, scene: int = 0) -> Clip:
        """The frames that `actions` [F, 5] bring about from `start` (x, y, yaw; by default the middle, looking north).

        `scene` (0 to 2**31 - 1) decides where the wisps are.

        Raises ValueError when the shape is wrong, when `actions[0]` is not zero (no key drove the first frame), or when
        no player can stand at `start`.
        """
        if actions.ndim != 2 or actions.shape[1] != len(WORLD_KEYS) or len(actions) == 0:
            raise ValueError(f"actions must be [F, {len(WORLD_KEYS)}] with F of 1 or more, got {actions.shape}")
        if actions[0].any():
            raise ValueError(f"actions[0] must be zero, since no key drove the first frame; got {actions[0].tolist()}")
        pose = (0.0, 0.0, 90.0) if start is None else start
        if not is_free(pose[0], pose[1], margin=17):
            raise ValueError(f"no player can stand at x={pose[0]}, y={pose[1]}: inside or too near a wall or pillar")
        clip = self._empty(len(actions))
        clip.actions[:] = actions != 0
        self._begin(pose, scene)
        self._observe(clip, 0)
        for t in range(1, len(actions)):
            self._step(clip, t)
        return clip

    def _empty(self, num_frames: int) -> Clip:
        if num_frames < 1:
            raise ValueError(f"a clip has 1 frame or more, got num_frames={num_frames}")
        return Clip(
            np.zeros((num_frames, self.height, self.width, 3), np.uint8),
            np.zeros((num_frames, len(WORLD_KEYS)), np.uint8),
            np.zeros((num_frames, 3), np.float32),
            actors=np.zeros((num_frames, len(WISPS), 3), np.float32),
            eyes=np.zeros(num_frames, np.float32),
            beats=np.zeros(num_frames, np.float32),
        )

    def _begin(self, pose: Pose, scene: int) -> None:
        x, y, yaw = pose
        game = self._game
        game.set_seed(scene)
        game.new_episode()
        game.send_game_command("god")
        game.make_action([0, 0, 0, 0], FRAME_SKIP)  # commands of the first tics are lost
        game.send_game_command(f"warp {x:.2f} {y:.2f}")
        game.make_action([0, 0, 0, 0], SETTLE_TICS + scene % SPREAD_TICS)
        angle = vizdoom.GameVariable.ANGLE
        turn = (yaw - game.get_game_variable(angle) + 180) % 360 - 180
        game.make_action([0, 0, -turn, 0], 1)
        game.make_action([0, 0, 0, 0], 1)
        off = (yaw - game.get_game_variable(angle) + 180) % 360 - 180
        if abs(off) > 0.1:
            raise RuntimeError(f"the engine did not turn the player to {yaw:.1f} degrees but {off:.1f} short of it")

    def _step(self, clip: Clip, t: int) -> vizdoom.GameState:
        forward, back, left, right, fire = (int(key) for key in clip.actions[t])
        # Buttons add up in the engine: forward with back, or left with right, is standing still.
        self._game.make_action([forward, back, TURN_DEG_PER_TIC * (right - left), fire], FRAME_SKIP)
        return self._observe(clip, t)

    def _observe(self, clip: Clip, t: int) -> vizdoom.GameState:
        state = self._game.get_state()
        pose = state.game_variables
        if pose is None:
            raise RuntimeError("the engine gave a state without game variables")
        clip.frames[t] = cv2.resize(state.screen_buffer, (self.width, self.height), interpolation=cv2.INTER_AREA)
        x, y, yaw, eye = (float(value) for value in pose)
        clip.poses[t] = x, y, yaw % 360
        assert clip.actors is not None and clip.eyes is not None and clip.beats is not None
        clip.eyes[t] = eye * STRETCH
        clip.beats[t] = state.tic / FLAME_TICS % 1
        clip.actors[t] = [(w.position_x, w.position_y, w.angle / 360) for w in _wisps(state)]
        return state

    def close(self) -> None:
        """End the engine and remove its files."""
        self._game.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class WorldData:
    """The world's clips (a `training.data.ClipData`), in frames of width x height pixels."""

    width: int = 160
    height: int = 128

    keys = WORLD_KEYS
    fps = FPS

    def fingerprint(self) -> str:
        """Of what is drawn and how it is played: the sources of this folder."""
        digest = hashlib.sha256()
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        return digest.hexdigest()

    def recorder(self, seed: int) -> WorldRecorder:
        return WorldRecorder(seed, self.width, self.height)

    def ground(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Ground:
        around = [int(PLAYER_RADIUS / np.diff(each).mean()) for each in (x, y)]
        here = heights(x, y[:, None])
        # A player stands on the highest of what is below him that he could step on.
        low = np.where(here <= STEP * STRETCH, here, here.min())
        floors = cv2.dilate(low, np.ones([2 * each + 1 for each in around[::-1]], np.uint8))
        return Ground(here, floors.astype(np.float32), EYE * STRETCH, fixtures=flames(), rate=FRAME_SKIP / FLAME_TICS)


def _wisp_ahead(state: vizdoom.GameState, pose: NDArray[np.float32]) -> float | None:
    """How far to the left (degrees) of where the player at `pose` [3] looks the wisp next to that is.

    None without a wisp in the 90 degrees of the view. One hidden by a pillar counts: a player remembers those.
    """
    x, y, yaw = pose
    left = [
        (math.degrees(math.atan2(wisp.position_y - y, wisp.position_x - x)) - float(yaw) + 180) % 360 - 180
        for wisp in _wisps(state)
    ]
    return min((turn for turn in left if abs(turn) < 45), key=abs, default=None)


def _wisps(state: vizdoom.GameState) -> list[vizdoom.Object]:
    """All of them, always in the same order. Their angle is the clock of what a hit began (arena.py)."""
    return sorted((thing for thing in state.objects or () if thing.name == "Wisp"), key=lambda wisp: wisp.id)


def _random_pose(rng: np.random.Generator) -> Pose:
    while True:
        x, y = rng.uniform(-HALF - ALCOVE_DEPTH, HALF), rng.uniform(-HALF, HALF)
        if is_free(x, y):
            return float(x), float(y), float(rng.uniform(0, 360))
