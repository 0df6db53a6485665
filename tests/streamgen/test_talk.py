"""What drives a talking head: its ear hears what was said, and it lives by itself."""

from __future__ import annotations

import numpy as np
import pytest

from streamgen.audio import MEL_BINS, SAMPLE_RATE, SILENCE, log_mel
from streamgen.config import AutoencoderConfig, SpeechConfig, StudentConfig, TransformerConfig
from streamgen.face import CURVES, LIFE, SPEECH
from streamgen.life import life
from streamgen.state import StreamState
from streamgen.talk import Ear, Performer, loudness


def config(fps: float = 25.0) -> StudentConfig:
    return StudentConfig(
        name="talker", fps=fps, width=32, height=32, step_plans={1: (1.0,)}, steps=1,
        transformer=TransformerConfig(
            in_channels=4, height=4, width=4, dim=24, ffn_dim=32, num_heads=2, num_layers=1, window=3, action_dim=31
        ),
        vae=AutoencoderConfig(latent_channels=4), speech=SpeechConfig(window=16, curves=len(SPEECH)),
    )  # fmt: skip


@pytest.mark.parametrize("fps", [25.0, 30.0])
@pytest.mark.parametrize("size", [200, 960])
def test_an_ear_hears_every_frames_sound_and_the_lookahead(fps: float, size: int) -> None:
    student = config(fps)
    assert student.speech is not None
    sound = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32) / 10
    whole = np.concatenate([np.full((16, MEL_BINS), SILENCE, np.float32), log_mel(sound)])
    ear, frame = Ear(student), 0
    for at in range(0, len(sound), size):
        ear.push(sound[at : at + size])
        while ear.has((frame + 1) / fps):
            end = round((frame + 1) * 100 / fps) + student.speech.lookahead
            assert np.array_equal(ear.window((frame + 1) / fps), whole[end : end + 16])
            # No earlier than needed: everything that was heard by now ends less than a piece later.
            assert end * 160 <= at + size
            frame += 1
    assert frame == int((100 - student.speech.lookahead) * fps / 100)
    with pytest.raises(IndexError, match=r"around 2\.000 s was not heard yet"):
        ear.window(2.0)
    with pytest.raises(IndexError, match=r"around 0\.100 s was not heard yet, or is forgotten"):
        ear.window(0.1)


def test_a_student_of_keys_has_no_ear() -> None:
    plain = config().model_copy(update={"speech": None})
    with pytest.raises(ValueError, match="talker does not hear"):
        Ear(plain)


def test_loudness_tells_speech_from_silence() -> None:
    sound = np.zeros(SAMPLE_RATE, np.float32)
    assert loudness(log_mel(sound)) < 1e-6
    sound[:] = 0.1 * np.random.default_rng(1).standard_normal(SAMPLE_RATE)
    assert loudness(log_mel(sound)) > 0.9


def curve(name: str, seed: int, frames: range, loud: float = 0.0) -> np.ndarray:
    index = list(LIFE).index(name)
    return np.array([life(seed, frame, 25.0, loud)[index] for frame in frames]) / LIFE[name]


def test_life_is_a_function_of_seed_and_frame() -> None:
    again = [life(5, frame, 25.0) for frame in (900, 3, 10**9)]
    assert all(np.array_equal(x, life(5, frame, 25.0)) for x, frame in zip(again, (900, 3, 10**9), strict=True))
    assert not np.array_equal(life(5, 3, 25.0), life(6, 3, 25.0))


def test_a_head_blinks_and_looks_around_and_never_jumps() -> None:
    blink = curve("blink", 2, range(4500))
    blinks = int(((blink[1:] > 0.7) & (blink[:-1] <= 0.7)).sum())
    assert 25 <= blinks <= 90  # of three minutes: people blink 10 to 25 times a minute
    yaw, roll = curve("headYaw", 2, range(2000)), curve("headRoll", 2, range(2000))
    assert 0.03 < yaw.std() < 0.1 and np.abs(np.diff(yaw)).max() < 0.02
    assert 0.01 < roll.std() < 0.05 and np.abs(np.diff(roll)).max() < 0.01
    gaze = curve("gazeYaw", 2, range(2000)) + 0.9 * yaw
    still = np.abs(np.diff(gaze)) < 1e-6
    assert still.mean() > 0.8  # eyes rest, and move at once
    assert 0.005 < gaze.std() < 0.2


def test_a_speaker_nods() -> None:
    frames = range(100, 110)
    assert (curve("headPitch", 1, frames, 1.0) > curve("headPitch", 1, frames)).all()
    assert (curve("browInnerUp", 1, frames, 1.0) > curve("browInnerUp", 1, frames)).all()


def test_a_voice_that_begins_moves_nothing_at_once() -> None:
    for frame in range(0, 500, 50):
        assert np.abs(life(3, frame, 25.0, 1e-3) - life(3, frame, 25.0)).max() < 1e-2


def test_a_new_stream_goes_on_from_where_its_start_stood() -> None:
    student = config()
    stood = np.concatenate([np.ones(len(SPEECH)), np.full(len(LIFE), 1.5)]).astype(np.float32)
    shape = (6, *student.latent_shape)
    start = StreamState.begin(student, "hash", 9, np.zeros(shape, np.float16), np.tile(stood, (6, 1)))
    performer = Performer(student, start)
    first = performer.actions(start.frame)
    assert first.shape == (len(CURVES),) and not first[: len(SPEECH)].any()
    assert np.allclose(first[len(SPEECH) :], 1.5, atol=0.05)
    assert np.allclose(performer.actions(start.frame + 25)[len(SPEECH) :], life(9, start.frame + 25, 25.0))


def test_one_that_turns_badly_sways_less() -> None:
    student = config()
    shape = (6, *student.latent_shape)
    start = StreamState.begin(student, "hash", 9, np.zeros(shape, np.float16), np.zeros((6, len(CURVES)), np.float32))
    calm = Performer(student.model_copy(update={"sway": 0.5}), start)
    for frame in range(start.frame + 30, start.frame + 300, 30):
        shown, own = calm.actions(frame)[len(SPEECH) :], life(9, frame, 25.0)
        for value, whole, name in zip(shown, own, LIFE, strict=True):
            assert value == pytest.approx(whole * (0.5 if name[:4] in ("head", "body", "gaze") else 1.0))
