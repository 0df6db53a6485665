"""The scheduler in simulated time: no worker process, no waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engines.protocol import Capacity, StepResult
from server.clock import Epoch
from server.inputs import Event
from server.load import ShowingCosts
from server.mailbox import Frame
from server.metrics import Metrics
from server.scheduler import WAKE_MARGIN_S, Scheduler
from server.streams import Stream
from server.supervisor import StepReply, WorkerState
from server.worker import Step, StreamFailed, WorkerReady
from streamgen.student import Student
from tests.server.synthetic import make_student


class Viewer:
    """Writes down what a stream reports, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frames: list[tuple[float, Frame]] = []
        self.shown: list[tuple[float, Event, int]] = []
        self.epochs: list[Epoch] = []
        self.ended: str | None = None

    def block_ready(self, frames: Sequence[Frame], shown: Sequence[Event], period_s: float) -> None:
        self.frames += [(self.world.now_s, frame) for frame in frames]
        self.shown += [(self.world.now_s, event, frames[0].index) for event in shown]

    def epoch_opened(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)

    def stream_ran_away(self) -> None:
        raise AssertionError("no stream of these runs away")

    def stream_ended(self, code: str, message: str) -> None:
        self.ended = code


class World:
    """Simulated time, and a worker in it whose steps take cost_s(now, step)."""

    state = WorkerState.READY
    spawned = 1

    def __init__(self, student: Student, rows: tuple[int, ...] = (1,)) -> None:
        self.now_s = 1000.0
        self.spent_s = 0.0
        self.showing_s = 0.0
        self.cost_s: Callable[[float, Step], float] = lambda now_s, step: 0.010
        self.steps: list[tuple[float, Step]] = []
        self.raises: set[str] = set()
        self.given_back: list[str] = []
        self._busy: tuple[float, Step] | None = None
        self.student = student
        self.streams: list[Stream] = []
        self.scheduler: Scheduler
        self.metrics = Metrics()
        self.ready = WorkerReady("simulated", "exact", "paint", Capacity(16, rows), {1: 0.005, 2: 0.010})

    def step(self, message: Step) -> None:
        assert self._busy is None
        self.steps.append((self.now_s, message))
        self._busy = self.now_s + self.cost_s(self.now_s, message), message

    def close_stream(self, stream_id: str) -> None:
        self.given_back.append(stream_id)

    def add(self, name: str) -> Viewer:
        viewer = Viewer(self)
        stream = Stream(name, self.student, 1, viewer)
        stream.play()
        self.streams.append(stream)
        self.scheduler.add(stream)
        return viewer

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while True:
            delay_s = self.scheduler._turn(self.now_s)
            wake_s = math.inf if delay_s is None else self.now_s + delay_s
            done_s = self._busy[0] if self._busy else math.inf
            if min(wake_s, done_s) > end_s:
                self.now_s = end_s
                return
            self.now_s = min(wake_s, done_s)
            if self._busy and self.now_s == done_s:
                began_s, message = self.steps[-1]
                self._busy = None
                self.scheduler.worker_replied(self._reply(message, self.now_s - began_s))

    def idle(self) -> Stream:
        """Run until no step is under way; returns the first stream."""
        while self._busy:
            self.run(0.001)
        return self.streams[0]

    def _reply(self, message: Step, step_s: float) -> StepReply:
        states = {stream.id: stream.state for stream in self.streams}
        self.spent_s += self.showing_s * len(message.requests)
        failed = self.raises & {request.stream_id for request in message.requests}
        config, alone = self.student.config, len(message.requests) == 1
        block = config.transformer.block_size
        return StepReply(
            message.call,
            tuple(
                StreamFailed(request.stream_id, "told to raise", alone)
                if failed
                else StepResult(
                    request.stream_id,
                    states[request.stream_id].frame,
                    np.zeros((block, 1, 1, 3), np.uint8),
                    np.zeros((block, *config.latent_shape), np.float16),
                    request.actions,
                )
                for request in message.requests
            ),
            (0,) * len(message.requests),
            step_s,
            0.0,
        )


@pytest.fixture
def world(student: Student, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(student, monkeypatch)


def make_world(
    student: Student, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, ...] = (1,), most_load: float = 0.95
) -> World:
    world = World(student, rows)
    monkeypatch.setattr("server.scheduler.WorkerSupervisor", lambda *args, **kwargs: world)
    world.scheduler = Scheduler(
        student,
        lambda: None,  # type: ignore[arg-type, return-value]
        world.metrics,
        slots=8,
        hang_after_s=1,
        ready_within_s=1,
        showing=ShowingCosts(lambda: world.spent_s),
        most_load=most_load,
        clock=lambda: world.now_s,
    )
    world.scheduler.worker_ready(world.ready)
    return world


def test_an_engine_that_another_took_the_place_of_is_counted(world: World) -> None:
    labels = {"student": world.student.config.name, "engine": "tensorrt"}
    for starts in (1, 2):
        world.scheduler.worker_ready(replace(world.ready, fallbacks=("tensorrt",)))
        assert world.metrics.registry.get_sample_value("streamgen_engine_fallbacks_total", labels) == starts


def test_twenty_minutes_have_every_frame_at_its_time(world: World) -> None:
    viewer = world.add("a")
    world.run(1200.0)
    times = [t for t, _ in viewer.frames]
    assert len(times) in range(1200 * 20 - 1, 1200 * 20 + 2)
    assert [frame.index for _, frame in viewer.frames] == list(range(3, 3 + len(times)))
    assert [frame.pts_us for _, frame in viewer.frames[::20]] == [1_000_000 * i for i in range(len(times[::20]))]
    assert len(viewer.epochs) == 1
    due_s = viewer.epochs[0].t0_s
    assert all(abs(t - (due_s + i * 0.05)) < 0.005 for i, t in enumerate(times))


def test_a_streams_first_blocks_take_the_steps_of_the_opening(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = student.config.model_copy(update={"opening": (1, 2, 1)})
    world = make_world(replace(student, config=config), monkeypatch)
    assert config.steps == 2
    world.add("a")
    world.run(0.5)
    stream = world.idle()
    taken = [message.requests[0].steps for _, message in world.steps]
    assert taken[:3] == [1, 2, 1] and set(taken[3:]) == {2}
    stream.reset(2)
    already = len(world.steps)
    world.run(0.5)
    assert [message.requests[0].steps for _, message in world.steps[already : already + 4]] == [1, 2, 1, 2]


def test_inputs_are_read_just_in_time(world: World) -> None:
    viewer = world.add("a")
    world.run(5.0)
    stream = world.idle()
    due_s = stream.due_s
    world.run(due_s - 0.010 - WAKE_MARGIN_S - 0.001 - world.now_s)
    assert not stream.waiting
    stream.inputs.edge("v", 1, 0.0, "Space", True, ["Space"], world.now_s)
    world.run(0.1)
    [(shown_s, _, _)] = viewer.shown
    assert shown_s <= due_s + 1e-9


def test_streams_are_spread_over_the_frame_time(world: World) -> None:
    viewers = [world.add(name) for name in "abc"]
    world.run(10.0)
    late_s = [
        max(t - e.t0_s - (f.index - e.n0) / 20 for t, f in v.frames) for v, e in ((v, v.epochs[0]) for v in viewers)
    ]
    assert max(late_s) < 1e-6
    starts_s = [t for t, _ in world.steps][-30:]
    assert min(b - a for a, b in pairwise(starts_s)) >= 0.010 - 1e-9


def test_a_stall_is_followed_by_a_new_epoch_and_not_by_a_burst(world: World) -> None:
    viewer = world.add("a")
    world.run(2.0)
    world.cost_s = lambda now_s, step: 3.0
    world.run(1.0)
    world.cost_s = lambda now_s, step: 0.010
    world.run(5.0)
    times = [t for t, _ in viewer.frames]
    stamps = [frame.pts_us for _, frame in viewer.frames]
    assert len(viewer.epochs) == 2
    assert max(b - a for a, b in pairwise(times)) > 2.5
    # After the stall frames come at their own rate again: the late one, and then one a period.
    after = [t for t in times if t > times[0] + 2.5]
    assert min(b - a for a, b in pairwise(after)) > 0.03
    assert all(b - a >= 49_999 for a, b in pairwise(stamps))
    assert stamps[-1] - stamps[0] == pytest.approx((times[-1] - times[0]) * 1e6, abs=60_000)


def test_a_short_delay_is_caught_up_within_the_epoch(world: World) -> None:
    viewer = world.add("a")
    world.run(2.0)
    world.cost_s = lambda now_s, step: 0.080
    world.run(0.06)
    world.cost_s = lambda now_s, step: 0.010
    world.run(2.0)
    assert len(viewer.epochs) == 1
    last_s, last = viewer.frames[-1]
    assert last_s <= viewer.epochs[0].t0_s + (last.index - viewer.epochs[0].n0) / 20 + 1e-6


def test_under_load_there_are_fewer_steps_then_fewer_frames_and_nobody_starves(world: World) -> None:
    world.cost_s = lambda now_s, step: 0.010 * step.requests[0].steps
    viewers = [world.add(name) for name in "abc"]
    world.run(10.0)
    assert world.scheduler.steps == 1
    assert len(viewers[0].frames) > 190
    world.cost_s = lambda now_s, step: 0.050
    for viewer in viewers:
        viewer.frames.clear()
    world.run(20.0)
    counts = [len(viewer.frames) for viewer in viewers]
    assert min(counts) > 0.8 * max(counts)
    assert sum(counts) > 300  # of the 400 that 20 s have room for
    for viewer in viewers:
        viewer.epochs.clear()
        viewer.frames.clear()
    world.run(20.0)
    assert sum(len(viewer.epochs) for viewer in viewers) < 10
    world.cost_s = lambda now_s, step: 0.005
    world.run(30.0)
    assert world.scheduler.steps == 2
    for viewer in viewers:
        viewer.frames.clear()
    world.run(10.0)
    assert all(len(viewer.frames) in range(199, 202) for viewer in viewers)


def test_what_viewers_cost_counts_when_another_wants_in(world: World) -> None:
    """At 20 frames a second and 5 ms a step there is room for nine streams, and for two if showing a frame takes 17."""
    world.cost_s = lambda now_s, step: 0.005 * step.requests[0].steps
    world.add("a")
    world.run(5.0)
    assert world.scheduler.admits_another()
    world.showing_s = 0.017
    world.run(10.0)
    assert world.scheduler.admits_another()
    world.add("b")
    assert not world.scheduler.admits_another()
    world.showing_s = 0.0
    world.run(10.0)
    assert world.scheduler.admits_another()


def test_nobody_is_let_in_while_those_inside_get_fewer_frames(world: World) -> None:
    # There is more work on the machine: two steps of three take long.
    world.cost_s = lambda now_s, step: 0.070 if len(world.steps) % 3 else 0.005
    world.add("a")
    world.run(10.0)
    assert world.scheduler.governor is not None and world.scheduler.governor.rate < 1
    assert not world.scheduler.admits_another()
    world.idle().stop()
    assert world.scheduler.admits_another()


def test_above_a_load_of_one_they_may_slow_each_other_down(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(student, monkeypatch, most_load=2.0)
    world.cost_s = lambda now_s, step: 0.030
    for name in ("a", "b"):
        assert world.scheduler.admits_another()
        world.add(name)
        world.run(10.0)
    assert world.scheduler.governor is not None and world.scheduler.governor.rate < 1
    assert world.scheduler.admits_another()
    world.add("c")
    world.run(10.0)
    assert not world.scheduler.admits_another()


def test_rows_bring_streams_into_phase(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(student, monkeypatch, rows=(1, 2, 4))
    for name in "abcde":
        world.add(name)
        world.run(0.517)
    world.steps.clear()
    world.run(5.0)
    sizes = [len(step.requests) for _, step in world.steps]
    assert set(sizes) == {4, 1}
    assert sizes.count(4) in range(99, 102)


def test_the_stream_that_spoils_a_batch_is_found_and_ends_alone(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(student, monkeypatch, rows=(1, 2, 4))
    viewers = {name: world.add(name) for name in "abcd"}
    world.run(1.0)
    world.raises = {"c"}
    world.run(2.0)
    assert viewers["c"].ended == "stream_failed"
    assert [viewers[name].ended for name in "abd"] == [None] * 3
    world.raises = set()
    world.run(2.0)
    for name in "abd":
        indices = [frame.index for _, frame in viewers[name].frames]
        assert indices == list(range(3, 3 + len(indices)))
        assert len(indices) > 80


def test_blocks_of_several_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(make_student(tmp_path, block_size=3), monkeypatch)
    viewer = world.add("a")
    world.run(30.0)
    assert len(viewer.frames) in range(597, 607)
    assert [frame.pts_us for _, frame in viewer.frames[:6]] == [0, 50_000, 100_000, 150_000, 200_000, 250_000]


def test_a_reset_drops_the_block_under_way_and_keeps_its_inputs(world: World) -> None:
    viewer = world.add("a")
    world.run(1.0)
    stream = world.idle()
    stream.inputs.edge("v", 1, 0.0, "Space", True, ["Space"], world.now_s)
    stream.inputs.edge("v", 2, 0.0, "Space", False, [], world.now_s)
    while not stream.waiting:
        world.run(0.001)
    before = len(viewer.frames)
    stream.reset(9)
    world.run(1.0)
    fresh = viewer.frames[before:]
    assert fresh[0][1].generation == 1
    assert fresh[0][1].index == 3
    assert [(event.seq, index) for _, event, index in viewer.shown] == [(1, 3), (2, 3)]
    assert [bool(step.requests[0].actions.any()) for _, step in world.steps].count(True) == 2
    stamps = [frame.pts_us for _, frame in viewer.frames]
    assert all(b > a for a, b in pairwise(stamps))


def test_a_lost_worker_is_asked_for_the_same_block_again(world: World) -> None:
    world.add("a")
    world.run(1.0)
    stream = world.idle()
    stream.inputs.edge("v", 1, 0.0, "Space", True, ["Space"], world.now_s)
    stream.inputs.edge("v", 2, 0.0, "Space", False, [], world.now_s)
    while not stream.waiting:
        world.run(0.001)
    asked = world.steps[-1][1].requests[0]
    world.scheduler.worker_lost("killed")
    world._busy = None
    world.spawned += 1
    world.run(1.0)
    again = next(step for _, step in world.steps if step.opens and step.call > 1)
    assert (again.requests[0].actions == asked.actions).all()


def test_a_stream_that_was_reset_gives_its_row_back(world: World) -> None:
    """The worker holds it until the next open, which never comes."""
    world.add("a")
    world.run(1.0)
    stream = world.idle()
    stream.stop()
    stream.reset(7)
    world.scheduler.remove(stream)
    assert world.given_back == ["a"]
