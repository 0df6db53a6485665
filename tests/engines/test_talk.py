"""A student that speech drives: what it hears moves it, on every engine alike, and into a video with sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from engines.check import check_student
from engines.cli import generate
from engines.generate import speak
from engines.openvino import OpenVINOEngine
from engines.protocol import StepRequest
from engines.torch import TorchEngine
from streamgen.audio import MEL_BINS, SAMPLE_RATE
from streamgen.face import CURVES, SPEECH
from streamgen.student import Student, StudentError


def voice(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    return (0.2 * rng.standard_normal(len(t)) * (np.sin(7 * t) > 0)).astype(np.float32)


def write_voice(path: Path, seconds: float) -> Path:
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        samples = (voice(seconds, 48_000) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*track.encode(frame), *track.encode(None)])
    return path


def test_engines_hear_alike(talker: Student) -> None:
    reference, engine = TorchEngine(talker), OpenVINOEngine(talker, precision="fp32")
    rng, state = np.random.default_rng(1), talker.start(0)
    for _ in range(8):
        mel = rng.standard_normal((1, 16, MEL_BINS)).astype(np.float32)
        actions = rng.standard_normal((1, len(CURVES))).astype(np.float32)
        results = []
        for each in (reference, engine):
            each.open("s", state)
            results.append(each.step([StepRequest("s", actions, 1, mel)])[0])
        wanted, got = results
        assert np.allclose(got.actions, wanted.actions, atol=1e-4)
        assert np.array_equal(wanted.actions[:, len(SPEECH) :], actions[:, len(SPEECH) :])
        assert not np.allclose(wanted.actions[:, : len(SPEECH)], actions[:, : len(SPEECH)])
        scale = np.abs(wanted.latents.astype(np.float32)).max()
        difference = np.abs(got.latents.astype(np.float32) - wanted.latents.astype(np.float32)).max()
        assert difference <= (1e-4 + 2**-10) * scale
        assert np.abs(got.frames.astype(int) - wanted.frames).max() <= 2
        state = state.extended(talker.config, wanted.latents, wanted.actions)


def test_a_decoder_looks_at_the_picture_that_its_stream_began_from(talker: Student) -> None:
    """Whoever it shows, the latents are the same; the frames are not."""
    engine, state = OpenVINOEngine(talker, precision="fp32"), talker.start(0)
    inverted = replace(state, picture=255 - state.picture)
    mel = np.zeros((1, 16, MEL_BINS), np.float32)
    results = []
    for name, begun in (("s", state), ("inverted", inverted)):
        engine.open(name, begun)
        results.append(engine.step([StepRequest(name, np.zeros((1, len(CURVES)), np.float32), 1, mel)])[0])
    one, other = results
    assert np.array_equal(one.latents, other.latents)
    assert np.abs(one.frames.astype(int) - other.frames).mean() > 10


def test_what_was_heard_is_part_of_the_state(talker: Student) -> None:
    """The actions of a result drive the same frame again, without the sound."""
    engine = OpenVINOEngine(talker, precision="fp32")
    mel = np.random.default_rng(2).standard_normal((1, 16, MEL_BINS)).astype(np.float32)
    rest = np.zeros((1, len(CURVES)), np.float32)
    frames = []
    for given in (mel, None):
        engine.open("s", talker.start(0))
        result = engine.step([StepRequest("s", rest, 1, given)])[0]
        rest = result.actions
        frames.append(result.frames)
    assert np.array_equal(frames[0], frames[1])


def test_sound_of_another_shape_or_for_the_deaf_is_refused(talker: Student, plain_student: Student) -> None:
    engine = OpenVINOEngine(talker, precision="fp32")
    engine.open("s", talker.start(0))
    actions = np.zeros((1, len(CURVES)), np.float32)
    with pytest.raises(ValueError, match=r"mel frames of shape \(1, 9, 80\); student talker takes \(1, 16, 80\)"):
        engine.step([StepRequest("s", actions, 1, np.zeros((1, 9, MEL_BINS), np.float32))])
    deaf = OpenVINOEngine(plain_student, precision="fp32")
    deaf.open("s", plain_student.start(0))
    keys = np.zeros((1, len(plain_student.config.keys)), np.float32)
    request = StepRequest("s", keys, 1, np.zeros((1, 16, MEL_BINS), np.float32))
    with pytest.raises(ValueError, match="does not hear"):
        deaf.step([request])


def test_identities_have_starts_of_their_own(talker: Student) -> None:
    starts = {who: [talker.start(seed, who).latents for seed in range(2)] for who in ("anna", "ben")}
    every = [latents for both in starts.values() for latents in both]
    assert all(not np.array_equal(a, b) for i, a in enumerate(every) for b in every[:i])
    assert np.array_equal(talker.start(1).latents, starts["anna"][1])
    with pytest.raises(StudentError, match="talker cannot be 'carl': anna, ben"):
        talker.start(0, "carl")


def test_a_talker_passes_the_check_but_for_its_card(talker: Student) -> None:
    findings = {finding.what: finding for finding in check_student(talker.path)}
    assert [what for what, finding in findings.items() if finding.ok is False] == ["card"]


def test_speech_moves_the_picture(talker: Student) -> None:
    engine = OpenVINOEngine(talker, precision="fp32")
    said = list(speak(engine, talker, voice(1.0), seed=4))
    silent = list(speak(engine, talker, np.zeros(SAMPLE_RATE, np.float32), seed=4))
    assert len(said) == len(silent) == 25
    assert not np.array_equal(said[10], silent[10])


def test_a_file_is_spoken_into_a_video_with_its_sound(talker: Student, tmp_path: Path) -> None:
    sound, out = write_voice(tmp_path / "said.wav", 2.0), tmp_path / "said.mp4"
    command = ["--student", str(talker.path), "--audio", str(sound), "--identity", "ben", "--out", str(out)]
    result = CliRunner().invoke(generate, command)
    assert result.exit_code == 0, result.output
    with av.open(str(out)) as container:
        assert container.metadata["comment"].startswith("Generated by a neural network")
        assert container.streams.video[0].frames == 50
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(container.streams.audio[0])])
        wanted = voice(2.0, 48_000)
        envelopes = [np.abs(x[: 48_000 * 19 // 10]).reshape(-1, 480).mean(1) for x in (heard, wanted)]
        assert np.corrcoef(*envelopes)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--actions", "{script}"], "driven by sound: --audio FILE"),
        (["--audio", "{script}"], "its sound cannot be read"),
        (["--audio", "{sound}", "--identity", "carl"], "cannot be 'carl'"),
    ],
)
def test_bad_options_are_named(talker: Student, tmp_path: Path, options: list[str], said: str) -> None:
    script = tmp_path / "script.txt"
    script.write_text("1 KeyW\n")
    names = {"script": str(script), "sound": str(write_voice(tmp_path / "said.wav", 0.5))}
    given = [option.format(**names) for option in options]
    result = CliRunner().invoke(generate, ["--student", str(talker.path), *given, "--out", str(tmp_path / "x.mp4")])
    assert result.exit_code == 1 and said in result.output
