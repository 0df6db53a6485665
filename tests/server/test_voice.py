"""A talking stream's sound: what comes in is heard with the frame that shows it, and nothing after an interruption."""

from __future__ import annotations

import numpy as np
import pytest

from server.voice import MOST_JITTER_S, VOICE_RATE, Voice
from streamgen.audio import SILENCE, log_mel
from streamgen.config import StudentConfig
from tests.streamgen.test_talk import config

FRAME = VOICE_RATE // 25


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * VOICE_RATE)).astype(np.float32)


def heard(voice: Voice, frames: int, fps: float = 25.0) -> np.ndarray:
    """The outgoing sound of so many frames, in [-1, 1]."""
    return np.concatenate([voice.cut(1 / fps).sound for _ in range(frames)]) / 32767


@pytest.fixture
def student() -> StudentConfig:
    return config()


@pytest.mark.parametrize("fps", [25.0, 30.0, 17.3])
def test_what_goes_out_is_what_came_in_later_by_the_stated_delay(fps: float) -> None:
    voice, sound = Voice(config(fps)), noise(1.0)
    voice.say(sound)
    assert voice.queued_s == 1.0
    out = heard(voice, round(1.5 * fps), fps)
    delay = round(voice.delay_s * VOICE_RATE)
    assert len(out) == round(round(1.5 * fps) / fps * VOICE_RATE)
    assert np.abs(out[delay : delay + len(sound)] - sound).max() < 1e-4
    assert not out[:delay].any() and not out[delay + len(sound) :].any()
    assert 0.06 <= voice.delay_s <= 0.08 and voice.queued_s == 0


def test_a_frame_hears_its_own_sound_and_the_lookahead(student: StudentConfig) -> None:
    """A click is in the window of the frame that it goes out with, where it belongs."""
    assert student.speech is not None
    voice, sound = Voice(student), np.zeros(VOICE_RATE, np.float32)
    sound[20 * FRAME : 20 * FRAME + 30] = 0.8
    voice.say(sound)
    cut = [voice.cut(0.04) for _ in range(30)]
    out = np.concatenate([each.sound for each in cut])
    went_out = int(np.abs(out).argmax())
    frame = went_out // FRAME
    loud = np.flatnonzero(cut[frame].mel.max(1) > SILENCE + 0.5)
    # The window ends `lookahead` mel frames after the frame's own sound.
    at = student.speech.window - student.speech.lookahead - 4 + (went_out - frame * FRAME) // 480
    assert at in loud and loud.min() >= at - 1 and loud.max() <= at + 3


def test_down_to_16_khz_a_voice_stays_what_it_was(student: StudentConfig) -> None:
    t = np.arange(VOICE_RATE) / VOICE_RATE
    tone = (0.3 * np.sin(2 * np.pi * 1000 * t) + 0.3 * np.sin(2 * np.pi * 13_000 * t)).astype(np.float32)
    voice = Voice(student)
    voice.say(tone)
    mel = [voice.cut(0.04).mel for _ in range(20)][-1]
    wanted = log_mel(0.3 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32))[60:76]
    assert np.abs(mel - wanted).max() < 0.25  # 13 kHz does not come back as 3 kHz


def test_a_microphone_is_held_back_until_late_packets_do_no_harm(student: StudentConfig) -> None:
    voice, sound, rng = Voice(student), noise(4.0), np.random.default_rng(1)
    arrives = np.arange(200) * 0.02 + rng.uniform(0, 0.03, 200)  # packets of 20 ms, up to 30 ms late
    out, sent = [], 0
    for frame in range(110):
        while sent < 200 and arrives[:200][sent] <= frame * 0.04:
            voice.hear("mic", sound[sent * 960 : (sent + 1) * 960])
            sent += 1
        out.append(voice.cut(0.04).sound)
    went_out = np.concatenate(out) / 32767
    first = int(np.flatnonzero(went_out)[0])
    assert np.abs(went_out[first : first + 3 * VOICE_RATE] - sound[: 3 * VOICE_RATE]).max() < 1e-4
    assert first / VOICE_RATE < voice.delay_s + 0.16
    assert voice.dropped_s == 0


def test_a_burst_is_not_held_for_ever(student: StudentConfig) -> None:
    voice = Voice(student)
    for piece in noise(2.0).reshape(-1, 960):
        voice.hear("mic", piece)
    assert voice.dropped_s == pytest.approx(2.0 - MOST_JITTER_S, abs=0.021)
    assert np.count_nonzero(heard(voice, 40)) == pytest.approx(MOST_JITTER_S * VOICE_RATE, abs=970)


def test_what_was_said_while_nobody_listened_is_not_caught_up_with(student: StudentConfig) -> None:
    voice = Voice(student)
    for _ in range(20):
        voice.hear("mic", noise(0.04))
    voice.listen_anew()
    for _ in range(4):
        voice.hear("mic", 0.5 * np.ones(FRAME, np.float32))
        out = heard(voice, 1)
    assert np.abs(out - 0.5).max() < 1e-3 or np.abs(heard(voice, 1) - 0.5).max() < 1e-3


def test_a_backlog_goes_with_the_next_silence(student: StudentConfig) -> None:
    """Packets that came late all at once must not make everything later for good."""
    voice = Voice(student)
    voice.hear("mic", noise(0.28))
    said = 0
    for frame in range(100):
        loud = 30 <= frame < 50 or frame >= 80
        voice.hear("mic", noise(0.04, frame) if loud else np.zeros(FRAME, np.float32))
        if np.abs(heard(voice, 1)).max() > 0.1 and frame >= 80:
            said = said or frame
    assert 0 < said - 80 <= 5  # 70 ms of the lookahead, 40 of the microphone; 280 were held


@pytest.mark.parametrize("word_s", [0.15, 0.16])  # it runs dry within a frame, and between two
def test_silence_between_words_is_counted_once(student: StudentConfig, word_s: float) -> None:
    voice = Voice(student)
    for _ in range(3):
        voice.hear("mic", noise(word_s))
        heard(voice, 20)
    assert voice.gaps == 3


def test_two_sources_are_heard_together_and_one_that_has_gone_is_not(student: StudentConfig) -> None:
    voice, words = Voice(student), noise(0.5, 1)
    voice.say(words)
    voice.hear("mic", noise(0.25, 2))
    voice.forget("mic")
    delay = round(voice.delay_s * VOICE_RATE)
    assert np.abs(heard(voice, 20)[delay : delay + len(words)] - words).max() < 1e-4


def test_after_an_interruption_nothing_of_the_old_is_heard_or_shown(student: StudentConfig) -> None:
    voice = Voice(student)
    voice.say(noise(3.0))
    voice.hear("mic", noise(0.2, 3))
    heard(voice, 15)
    voice.interrupt()
    cut = [voice.cut(0.04) for _ in range(20)]
    assert not np.concatenate([each.sound for each in cut]).any()
    # The first window is silent from its frame's beginning on.
    assert student.speech is not None
    silent = student.speech.lookahead + 4
    assert (cut[0].mel[-silent:] < SILENCE + 1e-3).all()
    assert (cut[4].mel < SILENCE + 1e-3).all()
    words = noise(0.2, 4)
    voice.say(words)
    delay = round(voice.delay_s * VOICE_RATE)
    assert np.abs(heard(voice, 15)[delay : delay + len(words)] - words).max() < 1e-4
