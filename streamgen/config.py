"""Configuration of a student, as its folder stores it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamgen.face import CURVES, SPEECH

PIXEL_PATCH = 4
"""Side of the pixel patch that an autoencoder folds into channels before its first level."""

DETAIL_LAYERS = 2
"""Convolutions of the detail head that the tokens steer."""

POSE_CHANNELS = 9
"""x, y, cosine and sine of yaw, what the last frame added to x and y, the height of the eye, what the last frame added
to that, and how far what beats in place is in its cycle: from 0 up to 1, then 0 again."""
ACTOR_CHANNELS = 5
"""x, y, what the last frame added to them, and how far what a hit began has gone: above 0 until 1, then 0 again."""
OCTAVES = 6
"""Of a place: the shortest wave is a sixteenth of `pose_scale` long."""
MOTION_DIM = 128
"""Width of the network that knows what walls take from a move."""
MOTION_LAYERS = 2
"""Its hidden layers beside the first."""
EYE_DIM = 32
"""Width of the network that knows how an eye goes up and down steps."""
COURSE_MAP = 192
"""Points along a side of the map of where actors ever were."""
VIEW_RAYS = 4
"""Of a latent pixel, across and up."""
VIEW_STEPS = 128
"""Of a ray."""
VIEW_LEVELS, VIEW_FEATURES = 5, 4
"""Grids of what a place looks like, and the features of each."""
SPRITE_CLOCKS, SPRITE_BEATS = 41, 8
"""Pictures of an actor, the first of which is that of one that nobody has hit, and of what beats in place."""
SPRITE_SIDES = 32, 16, 8
"""Points across and up a picture, for one who is close, further off, and far."""
WARP_BLOCKS, WARP_NEAR, WARP_FINE = 3, 24, 32
"""Of what bends a reference: residual blocks, and the widths of what it hands on and of what it corrects itself by."""
_OWN_PICTURE = 0.5
"""Noise level up to which keys made from noisy latents still tell what is in them (diagonal forcing)."""
FACE_CODE = 256
"""Width of what steers a face."""
FACE_BLOCKS, FACE_DEEP_BLOCKS = 2, 3
"""Of its blocks: those before and after the halving, each, and those at half of the resolution."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TransformerConfig(_Config):
    """Shape of a `CausalVideoTransformer` (`transformer/config.json`).

    Lengths in time are counted in latent frames, lengths in space in latent pixels.
    """

    in_channels: int = Field(16, ge=1, description="of a latent, the pose's included")
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    patch: int = Field(2, ge=1, description="side of the square patch that becomes one token")
    dim: int = Field(ge=8)
    ffn_dim: int = Field(ge=8)
    num_heads: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    freq_dim: int = Field(256, ge=2, description="width of the sinusoidal time embedding")
    text_dim: int | None = Field(None, description="width of the cross-attended context; None: no cross-attention")
    action_dim: int | None = Field(None, ge=1, description="width of a frame's action vector; None: no actions")
    eps: float = Field(1e-6, gt=0)
    window: int = Field(ge=1, description="frames that a query sees, its own block included, sinks not")
    sink: int = Field(0, ge=0, description="first frames of the stream that stay visible for ever")
    block_size: int = Field(1, ge=1, description="frames generated together")
    history_level: float = Field(
        0.0,
        ge=0,
        le=1,
        description="noise level of the pass whose keys and values the cache keeps. 0: that of a block's clean "
        "latents, a pass of its own (the commit); 1: the first denoising step, whose keys later ones see beside their "
        "own; between: the last denoising step",
    )
    concat_previous: bool = Field(False, description="the last clean latent before the block is part of the input")
    residual: bool = Field(
        False,
        description="x0 is predicted as the previous clean latent, as what a face shows of it, or as something between "
        "that latent and what a view shows, plus the head's output",
    )
    flow_map: bool = Field(
        False,
        description="a pass is told to which noise level it leads, and jumps there; without, it leads to none, and "
        "fresh noise is added for the next step",
    )
    ffn_conv: bool = Field(False, description="depthwise 3x3 convolution inside the FFN")
    detail_dim: int = Field(
        0, ge=0, description="channels of the convolutional detail head at the latents' own resolution; 0: none"
    )
    pose_scale: float | None = Field(
        None,
        gt=0,
        description="map units that count as 1 in the pose that a latent's last channels repeat over its pixels; "
        "None: no pose",
    )
    actors: int = Field(
        0, ge=0, description="of the world that go their own ways; beside the pose, a latent tells where they are"
    )
    fixtures: int = Field(0, ge=0, description="of the world that stay in place and beat, as flames do")
    view_dim: int = Field(128, ge=8, description="width of the network that knows what is to be seen from a pose")
    view_rows: int = Field(
        2**20,
        ge=2**10,
        le=2**21,
        description="features that the view's finest grid has room for, a power of two; each further grid a quarter",
    )
    ground_map: int = Field(640, ge=2, description="points along a side of the view's map of heights")

    face_dim: int = Field(
        0,
        ge=0,
        multiple_of=8,
        description="channels of the network that draws a face from the first frame and what drives it; 0: none",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for what, value, divisor in (
            ("height", self.height, self.patch),
            ("width", self.width, self.patch),
            ("dim", self.dim, self.num_heads),
            ("window", self.window, self.block_size),
            ("sink", self.sink, self.block_size),
        ):
            if value % divisor:
                raise ValueError(f"{what} {value} is not a multiple of {divisor}")
        if self.view_rows.bit_count() > 1:
            raise ValueError(f"view_rows {self.view_rows} is not a power of two")
        if self.residual and not self.concat_previous:
            raise ValueError("residual needs concat_previous: without it there is no previous latent to add to")
        if self.history_level > _OWN_PICTURE and not (self.concat_previous and self.block_size == 1):
            raise ValueError(
                f"history_level {self.history_level}: above {_OWN_PICTURE} a block's keys hardly know its own frames; "
                "that needs concat_previous and a block_size of 1, so that those of the next block do"
            )
        if self.flow_map and self.history_level:
            raise ValueError("flow_map leads every step somewhere else, so no history_level is that of all last steps")
        if self.pose_scale and not (self.residual and self.action_dim and self.picture_channels > 0):
            raise ValueError(
                f"pose_scale needs residual, action_dim and more than {POSE_CHANNELS} channels, with actors "
                f"{POSE_CHANNELS + ACTOR_CHANNELS}: "
                "a pose is the one before it, moved by the keys, and stands beside a picture"
            )
        if self.actors and (not self.pose_scale or self.width % self.actors):
            raise ValueError(f"actors {self.actors}: need pose_scale, and a width of which each gets an equal part")
        if self.fixtures and not self.pose_scale:
            raise ValueError(f"fixtures {self.fixtures}: need pose_scale")
        if self.face_dim and (self.pose_scale or not (self.action_dim and self.sink)):
            raise ValueError("face_dim needs action_dim and a sink, which is the reference, and no pose_scale")
        if self.face_dim and (self.height % 2 or self.width % 2):
            raise ValueError(f"face_dim needs an even height and width, not {self.height}x{self.width}")
        if self.window <= self.block_size:
            raise ValueError(f"window {self.window} leaves no past beside a block of {self.block_size}")
        if self.head_dim % 2 or self.head_dim < 12:
            raise ValueError(
                f"head dimension {self.head_dim} cannot be split into three rotary parts: use an even one >= 12"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def history_step(self, steps: int) -> int:
        """With a `history_level`: of a block's steps, counted from 0, the one whose keys are the history."""
        return 0 if self.history_level == 1 else steps - 1

    @property
    def picture_channels(self) -> int:
        """First channels of a latent, which the autoencoder decodes; the pose's and the actors' follow."""
        return self.in_channels - (POSE_CHANNELS if self.pose_scale else 0) - (ACTOR_CHANNELS if self.actors else 0)

    @property
    def head_channels(self) -> int:
        """What the heads say of a latent pixel: its picture and, beside a view, how much of the frame before stays."""
        return self.picture_channels + bool(self.pose_scale)

    @property
    def input_channels(self) -> int:
        """Of what the transformer sees at once: the noisy picture, the previous one, the view from the pose or the
        face.
        """
        viewed = self.pose_scale is not None or self.face_dim > 0
        return self.picture_channels * (1 + int(self.concat_previous) + int(viewed))

    @property
    def tokens(self) -> int:
        """Tokens of one latent frame."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Rotary pairs of one head given to time, height and width (Wan 2.1: 22, 21, 21 of 64)."""
        space = self.head_dim // 6
        return self.head_dim // 2 - 2 * space, space, space

    @property
    def past_slots(self) -> int:
        """Ring slots for frames before the block."""
        return self.window - self.block_size

    @property
    def slots(self) -> int:
        """All slots of the cache, one latent frame each: sinks first, then the ring."""
        return self.sink + self.past_slots

    @property
    def history_frames(self) -> int:
        """Clean latents from which a windowed pass rebuilds the live cache exactly.

        A layer sees `past_slots` frames back, so the deepest keys of a block depend on `num_layers` times as many
        frames before it (and on one more, where the previous latent is an input).
        """
        return self.num_layers * self.past_slots + int(self.concat_previous)


Jump = tuple[float, float]
"""Noise levels before and after a pass."""


def jumps(sigmas: Sequence[float], config: TransformerConfig) -> tuple[Jump, ...]:
    """Of the steps at levels `sigmas`: each to the next level where the transformer maps flows, else to no noise."""
    ends = (*sigmas[1:], 0.0) if config.flow_map else (0.0,) * len(sigmas)
    return tuple(zip(sigmas, ends, strict=True))


class AutoencoderConfig(_Config):
    """Shape of an `Autoencoder` (`vae/config.json`): two levels make 8 pixels a latent pixel, three make 16."""

    latent_channels: int = Field(16, ge=1)
    encoder_dims: tuple[int, ...] = Field((64, 128), min_length=1, description="of the levels, finest first")
    decoder_dims: tuple[int, ...] = Field((192, 96), min_length=1, description="of the levels, coarsest first")
    decoder_blocks: tuple[int, ...] = Field((2, 2), description="residual blocks of each level")
    warp_dim: int = Field(
        0,
        ge=0,
        description="width of the network that bends a reference picture to a frame, for what latents are too few for; "
        "0: none",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        levels = [len(each) for each in (self.encoder_dims, self.decoder_dims, self.decoder_blocks)]
        if len(set(levels)) > 1:
            raise ValueError(f"encoder_dims, decoder_dims and decoder_blocks have {levels} levels: make them equal")
        return self

    @property
    def latent_pixel(self) -> int:
        """Pixels of a frame along the side of a latent pixel."""
        return int(PIXEL_PATCH * 2 ** (len(self.encoder_dims) - 1))


class SpeechConfig(_Config):
    """Shape of a `SpeechEncoder` (`speech/config.json`). Times are mel frames of 10 ms (`streamgen.audio`)."""

    window: int = Field(64, ge=8, multiple_of=8, description="mel frames that a frame's curves are read from")
    lookahead: int = Field(6, ge=0, description="of them, those after the frame's end; they are latency")
    dim: int = Field(160, ge=8)
    curves: int = Field(ge=1, description="what it says of a frame")


class StudentConfig(_Config):
    """What serving must know of a student (`model_index.json`)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    fps: float = Field(gt=0)
    width: int = Field(ge=8, description="pixels")
    height: int = Field(ge=8, description="pixels")
    keys: tuple[str, ...] = Field(
        (), description="KeyboardEvent.code of every action, in the order of the action vector; none: speech drives it"
    )
    identities: tuple[str, ...] = Field((), description="who it can be; its starts are theirs, in order, as many each")
    likeness: float | None = Field(
        default=None,
        description="dB to which the autoencoder must know a picture that says who it is to be; none: no picture can",
    )
    sway: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of people's own motion that its head, body and gaze have: less where turns are drawn badly",
    )
    step_plans: dict[int, tuple[float, ...]] = Field(
        description="noise levels (sigma) of the denoising steps, by count"
    )
    steps: int = Field(description="steps a block gets unless the load asks for fewer")
    opening: tuple[int, ...] = Field(
        (), description="steps of a stream's first blocks, whatever the load: what is wrong there stays wrong"
    )
    transformer: TransformerConfig
    vae: AutoencoderConfig
    speech: SpeechConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.steps not in self.step_plans:
            raise ValueError(f"steps {self.steps} has no plan; plans exist for {sorted(self.step_plans)}")
        if unknown := sorted(set(self.opening) - set(self.step_plans)):
            raise ValueError(f"opening {unknown[0]} has no plan; plans exist for {sorted(self.step_plans)}")
        for count, sigmas in self.step_plans.items():
            if (
                len(sigmas) != count
                or sigmas[0] != 1.0
                or list(sigmas) != sorted(set(sigmas), reverse=True)
                or sigmas[-1] <= 0
            ):
                raise ValueError(f"step plan {count}: {sigmas} is not {count} falling noise levels from 1 to above 0")
            level = self.transformer.history_level
            if level and sigmas[self.transformer.history_step(count)] != level:
                raise ValueError(f"step plan {count}: {sigmas} does not end at the history_level {level}")
        if self.transformer.text_dim is not None:
            raise ValueError("text_dim: the rollout takes no text yet")
        channels = self.transformer.picture_channels, self.vae.latent_channels
        if channels[0] != channels[1]:
            raise ValueError(f"{channels[0]} channels of picture in the transformer, {channels[1]} in the autoencoder")
        if self.speech is None and self.action_dim != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys for an action vector of {self.action_dim}")
        heard = (self.speech.curves, self.action_dim, len(self.keys)) if self.speech else None
        if heard is not None and heard != (len(SPEECH), len(CURVES), 0):
            raise ValueError(
                f"speech of {heard[0]} curves in an action vector of {heard[1]}, and {heard[2]} keys: a talking head "
                f"has {len(SPEECH)} in {len(CURVES)}, and no keys"
            )
        if self.likeness is not None and not self.transformer.face_dim:
            raise ValueError("likeness: only a face (face_dim) draws from a picture")
        if self.vae.warp_dim and not self.transformer.face_dim:
            raise ValueError("vae.warp_dim: only a face (face_dim) has a reference")
        side = self.vae.latent_pixel
        if (self.height, self.width) != (self.transformer.height * side, self.transformer.width * side):
            raise ValueError(f"{self.width}x{self.height} pixels do not match the latent grid")
        return self

    @property
    def action_dim(self) -> int:
        """Width of a frame's action vector."""
        return self.transformer.action_dim or 0

    def steps_of(self, block: int, wanted: int | None = None) -> int:
        """Steps of the block of this number since a stream's start. wanted: of those after the opening; by default
        `steps`.
        """
        return self.opening[block] if block < len(self.opening) else wanted or self.steps

    @property
    def served(self) -> tuple[int, ...]:
        """Step counts that a stream may get from a server: those of its opening, `steps`, and fewer under load."""
        return tuple(count for count in sorted(self.step_plans) if count <= self.steps or count in self.opening)

    @property
    def sees_first(self) -> bool:
        """Whether there are steps that see the keys of their block's first one."""
        return self.transformer.history_level == 1 and max(self.step_plans) > 1

    def jumps(self, count: int) -> tuple[Jump, ...]:
        """Noise levels from and to which each of `count` steps leads."""
        return jumps(self.step_plans[count], self.transformer)

    @property
    def all_jumps(self) -> tuple[Jump, ...]:
        """Of all steps, and of the commit, which stays at 0; in order."""
        return tuple(sorted({(0.0, 0.0), *(jump for count in self.step_plans for jump in self.jumps(count))}))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent frame."""
        return self.transformer.in_channels, self.transformer.height, self.transformer.width

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the picture that a stream's decoder looks at; nothing of it where it looks at none."""
        return (self.height, self.width, 3) if self.vae.warp_dim else (0, 0, 3)
