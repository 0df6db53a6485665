"""Recipes: a run's settings as YAML, checked before anything starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from streamgen.config import AutoencoderConfig, SpeechConfig, TransformerConfig
from streamgen.face import SPEECH
from streamgen.student import WEIGHTS
from training.methods.settings import AnyMethod

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a frame, in shares of its width and height."""


class RecipeError(ValueError):
    """The recipe cannot be used; the message names the field."""


class BaseRecipe(BaseModel):
    """What every stage has. `steps` are optimiser steps; the learning rate warms up, stays, and decays over the last
    share.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_-]+$", description="the run's folder is runs/NAME")
    seed: int = 0
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, description="of AdamW")
    matrix_learning_rate: float | None = Field(
        None, gt=0, description="of Muon, for matrices and kernels inside of blocks; None: AdamW trains them too"
    )
    critic_learning_rate: float | None = Field(
        None, gt=0, description="of AdamW, for a critic where there is one; None: as for the model"
    )
    warmup: int = Field(100, ge=0)
    decay: float = Field(0.25, ge=0, le=1, description="share of the steps over which the rate falls to zero")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(
        1e-8, gt=0, description="AdamW's: below the gradients of what is seldom met, such as a view's features"
    )
    clip: float = Field(1.0, gt=0, description="gradient norm")
    ema: float = Field(0.995, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every: int = Field(500, ge=1)
    checkpoint_every_s: float = Field(120, gt=0)
    data: Path | None = Field(None, description="folder of videos; none: the recorder of the world")
    driven_by: Literal["keys", "speech"] = Field("keys", description="what the folder's videos show: play, or talk")
    clips: int = Field(ge=1, description="of a batch")
    clip_length: int = Field(ge=1, description="frames")
    data_workers: int = Field(1, ge=1, description="processes that record or decode, beside each training process")
    accumulate: int = Field(1, ge=1, description="batches of each process that a step averages")

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed: the settings but for its length, and the weights it builds on."""
        settings = self.model_dump(mode="json", exclude=_MAY_CHANGE)
        for field, part in _PARTS:
            if settings.get(field) is not None:
                settings[field] = weights_hash(Path(settings[field]), part)
        return settings


_PARTS = (
    ("autoencoder", "vae"),
    ("teacher", "transformer"),
    ("student", "transformer"),
    ("pose", "pose"),
    ("face", "face"),
)
"""Fields that name a run or student folder, and whose weights of it count."""
_MAY_CHANGE = {
    "steps",
    "decay",
    "evaluate_every",
    "checkpoint_every_s",
    "data",  # what counts are its clips: the loop adds their fingerprint
    "accumulate",  # times processes: the loop adds the product
    "data_workers",
    "precision",
    "recycle_share",
    "scattered",
    "serve",
    "shard",
    "forget_activations",
}


def weights_hash(folder: Path, part: str) -> str:
    """SHA-256 of the weights of a run or student folder; of an autoencoder, of what makes its latents. Raises
    RecipeError when it has none.
    """
    path = folder / part / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path} is not there: run that stage first, or name a folder that has it") from error
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if part != "vae" or not name.startswith("decoder."):
            digest.update(name.encode() + value.float().numpy().tobytes())
    return digest.hexdigest()


class AutoencoderRecipe(BaseRecipe):
    """Images through the autoencoder: L1, gradient L1, a small pull of the latents to unit scale, noise on the
    latents.
    """

    stage: Literal["autoencoder"]
    model: AutoencoderConfig = Field(default_factory=lambda: AutoencoderConfig.model_validate({}))
    clips: int = Field(4, ge=1, description="clips a batch is drawn from")
    frames: int = Field(4, ge=1, description="frames from each clip")
    clip_length: int = Field(48, ge=1)
    gradient_weight: float = 1.0
    latent_weight: float = 1e-3
    width: int = Field(128, ge=8, description="pixels")
    height: int = Field(96, ge=8, description="pixels")
    crop: int | None = Field(None, ge=8, description="side of the squares that frames are cut to; none: whole frames")
    focus: Box | None = Field(None, description="most crops lie around a point in this part of a frame")
    latent_noise: float = Field(0.05, ge=0, description="in units of the latents' own standard deviation")
    start: Path | None = Field(None, description="run or student folder whose weights to start from")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        side = self.model.latent_pixel
        for what, value in (("width", self.width), ("height", self.height), ("crop", self.crop or side)):
            if value % side:
                raise ValueError(f"{what} {value} is not a multiple of the {side} pixels of a latent pixel")
        if self.crop is not None and self.crop > min(self.width, self.height):
            raise ValueError(f"crop {self.crop} is larger than a frame of {self.width}x{self.height}")
        return self


class SpeechRecipe(BaseRecipe):
    """From sound to the curves of a mouth."""

    stage: Literal["speech"]
    data: Path = Field(description="folder of speech with ground truth (training/talk/voices.py)")
    model: SpeechConfig = Field(default_factory=lambda: SpeechConfig.model_validate({"curves": len(SPEECH)}))
    change_weight: float = Field(1.0, ge=0, description="of the error of what changes from frame to frame")
    start: Path | None = Field(None, description="run or student folder whose weights to start from")

    @field_validator("model", mode="before")
    @classmethod
    def _says_all_of_them(cls, model: Any) -> Any:
        """A recipe that changes something else of it need not say how many curves there are."""
        return {"curves": len(SPEECH)} | model if isinstance(model, dict) else model


class FaceJudgeRecipe(BaseRecipe):
    """A judge of generated faces, from real ones."""

    stage: Literal["face_judge"]
    data: Path = Field(description="folder of talking heads with ground truth (training/talk/dataset.py)")
    width: int = Field(256, ge=64, description="pixels")
    height: int = Field(256, ge=64, description="pixels")
    clips: int = Field(0, ge=0, le=0, description="none: a batch is drawn from frames that are kept")
    clip_length: int = Field(1, ge=1, le=1)
    frames: int = Field(48, ge=1, description="of a batch")


class JudgesRecipe(BaseRecipe):
    """Judges of generated frames, from pairs of real ones."""

    stage: Literal["judges"]
    width: int = Field(128, ge=32, multiple_of=8, description="pixels")
    height: int = Field(96, ge=32, multiple_of=8, description="pixels")
    frames: int = Field(4, ge=1, description="pairs from each clip")
    scale: float = Field(512.0, gt=0, description="map units that count as 1")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.clip_length <= self.frames:
            raise ValueError(f"clip_length {self.clip_length} has fewer than {self.frames} pairs of frames")
        return self


class PoseRecipe(BaseRecipe):
    """Where the keys lead in a world, and what is to be seen of it from any pose."""

    stage: Literal["pose"]
    autoencoder: Path = Field(description="run folder of the autoencoder")
    model: TransformerConfig = Field(
        description="of the student; what counts is its size, pose_scale, actors, action_dim and what the view has"
    )
    precision: Literal["fp32"] = Field("fp32", description="bf16 cannot move a pose")
    clips: int = Field(0, ge=0, le=0, description="none: a batch is drawn from what was recorded before")
    walks: int = Field(3000, ge=1, description="clips of clip_length frames that are recorded before the first step")
    frames: int = Field(64, ge=1, description="of a batch for the view, drawn from the clips")
    starts: int = Field(256, ge=1, description="of a batch: where in the clips the keys lead on from")
    walk: int = Field(8, ge=1, description="frames for which they lead on")
    start: Path | None = Field(
        None,
        description="run or student folder whose pose to start from, of any frame and map size; what it lacks, such as "
        "actors, is made new",
    )

    @model_validator(mode="after")
    def _has_poses(self) -> Self:
        if not self.model.pose_scale:
            raise ValueError("there is no pose to learn: set model.pose_scale")
        if self.clip_length < self.walk + 2:
            raise ValueError(f"clip_length {self.clip_length}: a walk of {self.walk} needs two frames more")
        return self


class FaceRecipe(BaseRecipe):
    """What a talking head about looks like, from a reference and what drives it."""

    stage: Literal["face"]
    autoencoder: Path = Field(description="run folder of the autoencoder")
    model: TransformerConfig = Field(description="of the student; what counts is its size and face_dim")
    scattered: float = Field(1.0, ge=0, le=1, description="as a student's: the frames are best far apart")
    unread: float = Field(
        0.0, ge=0, le=1, description="share of the references of which nobody says what drives them, as of a picture"
    )
    as_seen: bool = Field(False, description="as a student's")
    start: Path | None = Field(None, description="run or student folder whose face to start from")
    focus: dict[str, Box] = Field({}, description="named parts of a frame whose error counts `focus_weight` times")
    focus_weight: float = Field(3.0, gt=0)

    @model_validator(mode="after")
    def _has_face(self) -> Self:
        if not self.model.face_dim:
            raise ValueError("there is no face to learn: set model.face_dim")
        if self.driven_by != "speech" or self.clip_length < 2:
            raise ValueError("a face is learned from pairs: set driven_by: speech, and clip_length to 2 or more")
        return self


class TransformerRecipe(BaseRecipe):
    """What stages have that train a whole transformer."""

    autoencoder: Path = Field(description="run folder of the autoencoder")
    shard: bool = Field(False, description="the processes share one model, each with a piece (FSDP2)")
    forget_activations: bool = Field(
        False, description="calculate each block again on the way back: less memory, a third more time"
    )
    judged_clips: int = Field(6, ge=1, description="held-out ones that each evaluation takes")
    judged_frames: int = Field(96, ge=32, description="of each of them; the first 16 are history only")


class StudentRecipe(TransformerRecipe):
    copies: int = Field(
        2,
        ge=0,
        description="noisy copies of each clip that share its history; none: the history alone, which is a step like "
        "others where model.history_level is 1",
    )
    context_noise: float = Field(0.3, ge=0, le=1, description="the clean half is noised up to this level, and told so")
    recycle: int = Field(8, ge=0, description="frames of history replaced by the model's own rollout; 0: none")
    recycle_share: float = Field(0.5, ge=0, le=1, description="share of the steps that recycle")
    recycle_clip: float = Field(
        2.0, gt=0, description="largest error that a rollout may put into the history, in latent units"
    )
    drift: float = Field(
        0.0, ge=0, description="half of the histories get a gain and a bias per channel, of this standard deviation"
    )
    fade: float = Field(0.0, ge=0, le=1, description="share of the histories whose picture fades; of use with a pose")
    scars: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the histories with a patch of noise, which the next frame is to mend: against pictures "
        "that run away from one place; of use where something else tells what is to be seen, such as a pose",
    )
    redrawn: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the histories that are drawn towards what the face alone shows of them, some of them all "
        "the way: what is left of a long rollout's details; of use with a face",
    )
    simulated: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps that add noise to what the model itself makes of pure noise, instead of to the "
        "true frames that they aim at: what a second step gets to see; of use where clips are noised",
    )
    scattered: float = Field(
        0.0,
        ge=0,
        le=1,
        description="driven_by speech: share of the clips whose frames are taken from anywhere in a video, in no "
        "order; the frame before says little then, and what drives a frame must say it",
    )
    first_target: int = Field(2, ge=0, description="frames at the start of a clip that are history only")
    as_seen: bool = Field(False, description="an error of a latent channel counts by how much the decoder shows of it")
    focus: dict[str, Box] = Field({}, description="named parts of a frame whose error counts `focus_weight` times")
    focus_weight: float = Field(3.0, gt=0)


class TeacherForcingRecipe(StudentRecipe):
    """Autoregressive flow matching with a clean prefix: the teacher, and the student's starting point."""

    stage: Literal["teacher_forcing"]
    model: TransformerConfig
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="share of the frames of noisy copies whose action is withheld"
    )
    shift: float = Field(
        1.0, gt=0, description="above 1: more of the high noise levels, where the dynamics are learned"
    )
    sigma_floor: float = Field(
        0.0, ge=0, lt=1, description="an error of x0 counts 1 / max(sigma, this) squared; 0: plain flow matching"
    )
    tail: int | None = Field(
        None,
        ge=1,
        description="frames at a clip's end that are trained on, so that those before may be a long rollout at the "
        "cost of a rollout; None: all",
    )
    start: Path | None = Field(
        None,
        description="run or student folder whose weights to start from; what they lack is made new, and a pose or face "
        "that is named is taken from its own run",
    )
    start_blocks: Path | None = Field(
        None,
        description="the same, but only its blocks and its sense of noise: all that students of other things share",
    )
    start_layers: tuple[int, ...] | None = Field(
        None, description="which of the start's blocks, from 0, become this model's, in their order: of a deeper one"
    )
    pose: Path | None = Field(None, description="run folder of the pose, which a new model with pose_scale needs")
    face: Path | None = Field(None, description="run folder of the face, which a new model with face_dim needs")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        room = self.model.window + self.recycle + self.model.block_size
        if self.clip_length < max(room, 2 * self.model.window):
            raise ValueError(f"clip_length {self.clip_length}: needs {room} for recycling, two windows for eviction")
        if self.tail is not None and not 2 * self.model.window <= self.tail <= self.clip_length:
            raise ValueError(f"tail {self.tail}: give two windows or more, and no more than clip_length")
        if self.tail is not None and self.model.sink:
            raise ValueError(f"tail {self.tail}: the first frames of a clip are the sink, and must be trained on")
        if self.tail is not None and self.recycle and self.clip_length - self.tail >= self.model.window + self.recycle:
            raise ValueError(
                f"tail {self.tail}: a rollout of {self.recycle} frames could end before it; give a clip_length below "
                f"{self.tail + self.model.window + self.recycle}"
            )
        if any(n % self.model.block_size for n in (self.recycle, self.clip_length, self.tail or 0)):
            raise ValueError(f"recycle, clip_length and tail must be whole blocks of {self.model.block_size}")
        if not self.copies and self.model.history_level != 1:
            raise ValueError(
                "copies 0: then the history's pass is the only step; set model.history_level to 1, or copies"
            )
        if not self.copies and self.simulated:
            raise ValueError("simulated: with copies 0 nothing takes a second step; leave it out")
        if self.model.flow_map:
            raise ValueError(
                "model.flow_map: jumps are learned by distillation (method flow_map), from a model without"
            )
        if self.start is not None and self.start_blocks is not None:
            raise ValueError("start and start_blocks: give one of them")
        if self.start_layers is not None and len(self.start_layers) != self.model.num_layers:
            raise ValueError(f"start_layers {list(self.start_layers)}: model.num_layers is {self.model.num_layers}")
        if self.start_layers is not None and self.start is None and self.start_blocks is None:
            raise ValueError("start_layers: name the start, or start_blocks, whose layers they are")
        if self.model.pose_scale and self.pose is None and self.start is None:
            raise ValueError("model.pose_scale needs a pose, trained before (stage `pose`), or a start that has one")
        if self.model.face_dim and self.face is None and self.start is None:
            raise ValueError("model.face_dim needs a face, trained before (stage `face`), or a start that has one")
        return self


class DecoderRecipe(BaseRecipe):
    """What a student draws, decoded sharp."""

    stage: Literal["decoder"]
    student: Path = Field(description="run or student folder whose rollouts to decode")
    autoencoder: Path = Field(description="run or student folder of the autoencoder; its encoder stays as it is")
    plan: tuple[float, ...] = Field((1.0,), description="noise levels of the student's steps")
    clips: int = Field(0, ge=0, le=0, description="none: a batch is drawn from what was rolled out before")
    walks: int = Field(160, ge=1, description="clips that are recorded and rolled out before the first step")
    recycle: int = Field(ge=1, description="frames of each clip that are the student's own rollout")
    recycle_clip: float = Field(4.0, gt=0, description="largest error of a rollout, in latent units")
    pairs: int = Field(8, ge=1, description="of a batch: of successive frames")
    crop: int | None = Field(None, ge=8, description="side of the squares that pairs are cut to; none: whole frames")
    focus: Box | None = Field(None, description="most crops lie around a point in this part of a frame")
    gradient_weight: float = Field(1.0, ge=0, description="as an autoencoder's")
    warp_dim: int | None = Field(
        None, ge=0, description="as an autoencoder's, of a decoder that looks at references; none: as the autoencoder"
    )
    warp_weight: float = Field(0.8, ge=0, description="of how far a bent reference is from the frame")
    texture_weight: float = Field(
        3.0, ge=0, description="of how far the frame's texture is from the true one, as far as the mask says"
    )
    adversarial: float = Field(
        0.5,
        ge=0,
        description="pull of the discriminator on the pixels, in parts of that of the true picture; 0: there is none",
    )
    steepness: float = Field(
        0.001, ge=0, description="weight of the discriminator's slopes (R1 and R2); sharp and soft are not far apart"
    )


class BidirectionalRecipe(StudentRecipe):
    """All frames of a clip denoised together, from a causal teacher's weights: a score of whole rollouts."""

    stage: Literal["bidirectional"]
    start: Path = Field(description="run folder of the causal teacher")
    context: int = Field(8, ge=1, description="frames at the start of a clip that stay clean, at most")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of the frames whose action is withheld")
    shift: float = Field(1.0, gt=0, description="above 1: more of the high noise levels")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.context >= self.clip_length:
            raise ValueError(f"context {self.context}: a clip of {self.clip_length} frames has nothing after it")
        return self


class DistillationRecipe(StudentRecipe):
    """A student of few steps from a teacher, by one of the methods."""

    stage: Literal["distillation"]
    teacher: Path = Field(description="run or student folder of the teacher, causal or bidirectional")
    start: Path | None = Field(
        None, description="run or student folder that the student starts from; None: the teacher's, if it is causal"
    )
    method: AnyMethod
    step_plans: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (1.0, 0.5)}
    serve: int = Field(1, description="steps that the student is served with")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        method = self.method
        if self.serve not in self.step_plans:
            raise ValueError(f"serve {self.serve} has no step plan; plans exist for {sorted(self.step_plans)}")
        for count, plan in self.step_plans.items():
            if len(plan) != count or plan[0] != 1 or list(plan) != sorted(set(plan), reverse=True) or plan[-1] <= 0:
                raise ValueError(f"step plan {count}: {plan} is not {count} noise levels that fall from 1 to above 0")
        if method.name == "self_adversarial" and len(self.step_plans) < 2:
            raise ValueError(
                f"self_adversarial compares few steps with more, and step_plans has only {sorted(self.step_plans)}: "
                "give two step_plans or more, or take self_forcing"
            )
        if unknown := set(method.opened(self.step_plans)) - set(self.step_plans):
            raise ValueError(f"{method.name} opens with {min(unknown)} steps, for which there is no step plan")
        off = [s for plan in self.step_plans.values() for s in plan if not (s * (method.grid or 0)).is_integer()]
        if method.grid is not None and off:
            raise ValueError(
                f"noise level {off[0]} of a step plan is not on the grid of {method.grid} intervals: give multiples of "
                f"1/{method.grid}, or other method.intervals"
            )
        if not self.copies:
            raise ValueError("copies 0: only a teacher whose one pass is its history learns without them")
        if self.clip_length < method.frames:
            raise ValueError(f"clip_length {self.clip_length}: {method.name} needs {method.frames} frames")
        return self


AnyRecipe = (
    AutoencoderRecipe
    | SpeechRecipe
    | FaceJudgeRecipe
    | JudgesRecipe
    | FaceRecipe
    | PoseRecipe
    | DecoderRecipe
    | TeacherForcingRecipe
    | BidirectionalRecipe
    | DistillationRecipe
)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> AnyRecipe:
    """Read a recipe; `key=value` overrides (dotted keys reach inside, values are YAML) come on top. Raises
    RecipeError.
    """
    try:
        data: dict[str, Any] = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} is not a mapping")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"override {override!r} is not KEY=VALUE")
        *parents, leaf = key.split(".")
        target = data
        try:
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = yaml.safe_load(value)
        except (TypeError, AttributeError, yaml.YAMLError) as error:
            raise RecipeError(f"override {override!r} does not fit the recipe: {error}") from error
    adapter: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="stage")])
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {error}") from error
