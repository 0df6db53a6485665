"""Parts of the Python client that need no server."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from server.clock import MediaClock, rtp_ticks
from server.mailbox import _encode
from server.protocol import Ack, parse_client, schema
from streamgen_client import websocket
from streamgen_client.frames import Arrival, Buffer
from streamgen_client.inputs import Inputs
from streamgen_client.numbering import Name, Numbering
from streamgen_client.script import ScriptError, changes, length_s, read_script
from streamgen_client.stats import Meter

KEYS = ("KeyW", "ArrowLeft")


@given(
    fps=st.sampled_from([12.0, 17.5, 20.0, 29.97, 60.0]),
    origin=st.integers(0, 2**32 - 1),
    epochs=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 30), st.booleans()), min_size=1, max_size=6),
    tied=st.integers(0, 239),
)
def test_every_frame_is_named_by_its_rtp_timestamp(
    fps: float, origin: int, epochs: list[tuple[int, float, bool]], tied: int
) -> None:
    """The server's own clock stamps frames over pauses and resets; the client reads them back, however RTP wraps."""
    clock, numbering = MediaClock(fps), Numbering()
    names, frame, now_s, generation = [], 3, 100.0, 0
    for count, pause_s, reset in epochs:
        if reset:
            frame, generation = 3, generation + 1
        epoch = clock.open(frame, now_s)
        numbering.opened(epoch.n0, epoch.pts0_us, fps, generation)
        for _ in range(count):
            names.append(Name(generation, frame, clock.stamp(frame)))
            frame += 1
        now_s += count / fps + pause_s
    on_wire = [(rtp_ticks(name.pts_us) + origin) % 2**32 for name in names]
    index = tied % len(names)
    numbering.tie(on_wire[index], names[index].pts_us)
    assert [numbering.name(rtp) for rtp in on_wire] == names


def test_a_frame_from_before_every_known_epoch_has_no_name() -> None:
    numbering = Numbering()
    numbering.opened(50, 2_000_000, 20.0, 1)
    numbering.tie(1000, 2_000_000)
    assert numbering.name(1000 + 4500) == Name(1, 51, 2_050_000)
    assert numbering.name(1000 - 4500) is None


def arrival(number: int, generation: int = 0) -> Arrival:
    return Arrival(generation, number, number * 1000, b"")


async def test_the_buffer_keeps_the_newest_frames_of_the_newest_generation() -> None:
    buffer = Buffer(3)
    for number in range(1, 6):
        buffer.put(arrival(number))
    assert [(await buffer.get()).number, buffer.dropped] == [3, 2]
    buffer.put(arrival(1, generation=1))
    assert [(await buffer.get()).generation, buffer.dropped] == [1, 4]
    waiting = asyncio.create_task(buffer.get())
    await asyncio.sleep(0)
    buffer.fail(KeyError("over"))
    with pytest.raises(KeyError):
        await waiting
    with pytest.raises(KeyError):
        await buffer.get()


def test_frames_that_never_came_are_counted_and_repeated_ones_are_not() -> None:
    meter = Meter()
    came = [(0, 3), (0, 4), (0, 7), (0, 7), (0, 6), (1, 3), (0, 8), (1, 5)]
    assert [meter.arrived(generation, number, 0) for generation, number in came] == [
        True, True, True, False, False, True, False, True,
    ]  # fmt: skip
    stats = meter.read(dropped=2)
    assert (stats.frames, stats.missed, stats.dropped) == (5, 3, 2)


@pytest.mark.parametrize("acknowledged_first", [True, False])
def test_latency_ends_with_the_first_frame_that_shows_the_input(
    acknowledged_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 10.0
    # Not the clock of the whole process, by which other tests' servers wait.
    monkeypatch.setattr("streamgen_client.stats.time", SimpleNamespace(monotonic=lambda: now_s))
    meter = Meter()
    meter.arrived(0, 1, 1000)
    if acknowledged_first:
        meter.acknowledged(2000, sent_s=9.5)
    now_s = 10.25
    meter.arrived(0, 3, 3000)  # frame 2 was lost: this one shows the input too
    now_s = 11.0
    meter.arrived(0, 4, 4000)
    if not acknowledged_first:
        meter.acknowledged(2000, sent_s=9.5)
    assert meter.read(0).latency_s == (0.75,)
    assert meter.read(0).fps == pytest.approx(2.0)


async def test_an_answer_speaks_for_the_inputs_before_it() -> None:
    inputs = Inputs()
    first, second, third = (inputs.edge("KeyW", down, ["KeyW"] * down) for down in (True, False, True))
    assert [each.message["seq"] for each in (first, second, third)] == [1, 2, 3]
    assert inputs.next_unanswered(1) is second
    ack = {"type": "ack", "seq": 2, "t": 0.0, "frame": 9, "pts_us": 300, "rtp": None, "server_ms": 4.0}
    assert [sent_s for _, sent_s in inputs.acknowledged(ack)] == [first.sent_s, second.sent_s]
    assert first.answer.result() == second.answer.result()
    assert (first.answer.result().frame, first.answer.result().pts_us) == (9, 300)
    assert not third.answer.done() and inputs.next_unanswered(0) is third
    assert inputs.assertion() == {"type": "input", "seq": 4, "code": "KeyW", "down": True, "held": ["KeyW"]} | {
        "t": pytest.approx(third.message["t"], abs=1e6)
    }
    inputs.fail(KeyError("over"))
    with pytest.raises(KeyError):
        await third.answer
    assert inputs.next_unanswered(0) is None


def test_jpeg_is_decoded_in_the_right_colours() -> None:
    rows, columns = np.mgrid[0:96, 0:128]
    rgb = np.stack([rows * 2, columns * 2 - 1, 255 - rows - columns], axis=2).clip(0, 255).astype(np.uint8)
    jpeg = _encode(rgb)
    frame = Arrival(2, 7, 350_000, jpeg).decoded(128, 96)
    assert (frame.generation, frame.number, frame.pts_us, frame.pts_s) == (2, 7, 350_000, 0.35)
    expected = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert np.abs(frame.rgb.astype(int) - expected).max() <= 3
    assert np.abs(frame.rgb.astype(int) - rgb).mean() < 2


def test_a_key_script_is_read_repeated_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("# walk\n2.0 KeyW\n\n0 ArrowLeft\n0.5 KeyW ArrowLeft # turn\n0.5\n")
    script = read_script(path, KEYS)
    assert length_s(script) == 3.0
    walk, turn, stand = frozenset({"KeyW"}), frozenset(KEYS), frozenset[str]()
    assert list(changes(script, 5.2)) == [(0, walk), (2.0, turn), (2.5, stand), (3.0, walk), (5.0, turn)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("KeyW", "line 1: 'KeyW' is not a number"),
        ("1 KeyW\n-1", "line 2: '-1' is not a number"),
        ("nan", "line 1"),
        ("1 KeyQ", "line 1: unknown key KeyQ; this student knows KeyW, ArrowLeft"),
        ("0 KeyW\n# nothing", "no line lasts longer"),
    ],
)
def test_a_wrong_key_script_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "walk.txt"
    path.write_text(text)
    with pytest.raises(ScriptError, match=complaint):
        read_script(path, KEYS)


async def test_messages_are_those_of_the_protocol() -> None:
    inputs = Inputs()
    written = [inputs.ping(), inputs.assertion(), inputs.edge("KeyW", True, KEYS).message, inputs.ping()]
    for message in written:
        assert parse_client(json.dumps(message)).model_dump() == message
    assert [message["seq"] for message in written] == [0, 1, 2, 2]
    assert written[-1]["held"] == sorted(KEYS)
    ack = Ack(seq=2, t=0.0, frame=5, pts_us=7, rtp=None, server_ms=1.5)
    ((answer, _),) = inputs.acknowledged(json.loads(ack.model_dump_json()))
    assert (answer.frame, answer.pts_us, answer.server_ms) == (5, 7, 1.5)
    binary = schema()["binary"]
    assert websocket._HEADER.format == binary["struct"]
    assert (b"SG", schema()["version"], binary["kinds"]["jpeg"]) == websocket._JPEG_FRAME
