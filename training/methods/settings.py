"""What a recipe says of each method of distillation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Method(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def changes(self) -> dict[str, object]:
        """What the student's transformer has other than its teacher's."""
        return {}

    @property
    def frames(self) -> int:
        """Least length of a clip."""
        return 1

    @property
    def rolls_out(self) -> bool:
        """Whether scores judge the student's own rollouts: a teacher that sees the future can."""
        return False

    @property
    def grid(self) -> int | None:
        """Of how many intervals all noise levels of step plans must be whole ones; None: of none."""
        return None

    def opened(self, counts: Collection[int]) -> tuple[int, ...]:
        """Steps of a rollout's, and of a stream's, first blocks, of the counts that there are."""
        return ()


class OdeRegression(_Method):
    """The end points of the teacher's trajectories, from the levels of the step plans."""

    name: Literal["ode_regression"]
    intervals: int = Field(8, ge=1, description="Euler steps of a trajectory; 1: what the teacher makes in one step")
    guidance: float = Field(1.0, ge=1)
    history_level: float | None = Field(
        None, ge=0, le=1, description="of the student; None: the teacher's. 1 saves it the commit"
    )

    @property
    def changes(self) -> dict[str, object]:
        return {} if self.history_level is None else {"history_level": self.history_level}

    @property
    def grid(self) -> int:
        return self.intervals


class CausalConsistency(_Method):
    """Consistency along the teacher's trajectories."""

    name: Literal["causal_consistency"]
    intervals: int = Field(32, ge=2, description="N: the time grid has N intervals, the last one ends at zero noise")
    guidance: float = Field(1.0, ge=1)
    plan_weight: float = Field(
        0.5, ge=0, le=1, description="share of clips whose noise level is taken from the step plans"
    )

    @property
    def grid(self) -> int:
        return self.intervals


class OnPolicy(_Method):
    """What methods that learn from the student's own rollouts have in common."""

    context: int = Field(8, ge=1, description="true frames before a rollout")
    lead: int = Field(
        0, ge=0, description="frames rolled out before those with a gradient, at most: longer than a clip's window"
    )
    rolled: int = Field(12, ge=2, description="frames of a rollout that have a gradient")
    critic_steps: int = Field(2, ge=1, description="of the critic, for one of the student")
    guidance: float = Field(1.0, ge=1, description="of the teacher's score")
    switch: float = Field(
        0.0, ge=0, le=1, description="share of rollouts that others' actions drive from some frame of theirs on"
    )
    truth: float = Field(
        0.0, ge=0, description="weight of the squared error against the true frames, which rollouts leave behind"
    )
    seen: int = Field(
        1, ge=1, description="frames before the rolled ones that scores take for true; few, if they may have drifted"
    )

    @property
    def frames(self) -> int:
        return self.context + self.lead + self.rolled

    @property
    def rolls_out(self) -> bool:
        return True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.seen > self.context:
            raise ValueError(f"seen {self.seen}: a rollout has only {self.context} frames of context")
        return self


class SelfForcing(OnPolicy):
    """The distribution of the student's own rollouts, by a random exit from its steps."""

    name: Literal["self_forcing"]
    objective: Literal["dmd", "sid", "gan"] = "dmd"
    alpha: float = Field(1.0, gt=0, description="of sid")
    steepness: float = Field(1.0, ge=0, description="of gan: weight of R1 and R2")


class Diagonal(OnPolicy):
    """Fewer steps from block to block, over a history that the last, noisy step leaves behind."""

    name: Literal["diagonal"]
    history_level: float = Field(0.5, gt=0, le=1, description="at which all step plans end")
    opening: tuple[int, ...] = Field((), description="steps of the first blocks; the others have the fewest there are")
    motion: float = Field(0.2, ge=0, description="weight of the loss of what changes from frame to frame")

    @property
    def changes(self) -> dict[str, object]:
        return {"history_level": self.history_level}

    def opened(self, counts: Collection[int]) -> tuple[int, ...]:
        return self.opening


class SelfAdversarial(OnPolicy):
    """One student for several step counts: with fewer steps it must look as with more."""

    name: Literal["self_adversarial"]
    first: int | None = Field(None, description="steps of a rollout's first block; None: the most there are")
    adversarial: float = Field(0.1, ge=0, description="weight beside dmd")
    steepness: float = Field(1.0, ge=0, description="weight of R1 and R2")

    def opened(self, counts: Collection[int]) -> tuple[int, ...]:
        return (self.first or max(counts),)


class FlowMap(OnPolicy):
    """Jumps between any two noise levels: as many steps as one likes."""

    name: Literal["flow_map"]
    on_policy: bool = Field(False, description="dmd of its own rollouts beside what it learns from clips")
    nearby: float = Field(0.005, gt=0, lt=0.5, description="h of the central difference")
    same: float = Field(0.5, ge=0, le=1, description="share of jumps of no length: flow matching")
    all_the_way: float = Field(0.25, ge=0, le=1, description="share of jumps to zero noise")

    @property
    def changes(self) -> dict[str, object]:
        return {"flow_map": True}

    @property
    def frames(self) -> int:
        return super().frames if self.on_policy else 1

    @property
    def rolls_out(self) -> bool:
        return self.on_policy


class MutualForcing(_Method):
    """No teacher: few steps write the history, many steps learn the truth on it and teach the few."""

    name: Literal["mutual_forcing"]
    context: int = Field(8, ge=1, description="true frames before a rollout")
    many: int = Field(4, ge=2, description="steps of the mode that teaches")

    @property
    def frames(self) -> int:
        return self.context + 2

    @property
    def grid(self) -> int:
        return self.many


AnyMethod = Annotated[
    OdeRegression | CausalConsistency | SelfForcing | Diagonal | SelfAdversarial | FlowMap | MutualForcing,
    Field(discriminator="name"),
]
