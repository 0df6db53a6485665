"""Talking heads and voices as training data: what is heard belongs to what is seen and to what moved it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from streamgen.audio import SAMPLE_RATE, log_mel
from streamgen.config import AutoencoderConfig, SpeechConfig, TransformerConfig
from streamgen.face import CURVES, LIFE, SPEECH
from streamgen.models.autoencoder import Autoencoder, to_float
from streamgen.models.face import Face
from streamgen.models.loading import (
    load_autoencoder,
    load_face,
    load_speech,
    load_transformer,
    save_autoencoder,
    save_transformer,
)
from streamgen.models.speech import SpeechEncoder, windows
from tests.toy import WITH_FACE, toy_transformer, toy_transformer_config
from tests.training.talking import write_talk
from training.clips import LatentClips
from training.data import HELD_OUT_SEED, SOUND_AFTER_S, SOUND_BEFORE_S, Clip, held_out, recorded
from training.footage import VideoDataError
from training.loop import train
from training.package import _at_rest
from training.recipe import DecoderRecipe, FaceRecipe, RecipeError, SpeechRecipe, TeacherForcingRecipe
from training.stages import build_stage
from training.talk.augment import augmented, in_a_room, over_a_telephone, retimed, with_noise
from training.talk.dataset import TalkDataset
from training.talk.latents import with_latents
from training.talk.voices import VoiceDataset, ends_of

JAW, YAW = CURVES.index("jawOpen"), CURVES.index("headYaw")


def loudness(clip: Clip) -> np.ndarray:
    """Of every frame's own sound, [F]."""
    assert clip.sound is not None
    start = round(SOUND_BEFORE_S * SAMPLE_RATE)
    own = clip.sound[start : start + len(clip.actions) * SAMPLE_RATE // 25].reshape(len(clip.actions), -1)
    return np.sqrt((own**2).mean(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk")
    for number, base in ((1, 40), (2, 42), (20, 44), (21, 46)):
        write_talk(path, f"anna_{number:04d}", base=base, seed=number)
    write_talk(path, "ben_0003", base=110, seed=9)
    return path


def test_a_clip_is_a_reference_and_successive_frames_with_their_curves_and_sound(folder: Path) -> None:
    data = TalkDataset(folder, 32, 32)
    assert (data.keys, data.fps) == (CURVES, 25.0)
    people, sounds, jaws = set(), [], []
    for clip in recorded(data, 4, range(30), 20):
        assert clip.frames.shape == (20, 32, 32, 3)
        yaw = clip.actions[:, YAW] / LIFE["headYaw"]
        assert np.allclose(np.diff(yaw[1:]), 1, atol=1e-4)
        brightness = clip.frames.mean((1, 2, 3))
        # Frame n is 2 n brighter than the video's own grey, which differs by person.
        base = brightness - 2 * yaw
        assert np.ptp(base[1:]) < 4 and abs(base[0] - base[1:].mean()) < 12
        sounds.append(loudness(clip)[1:])
        jaws.append(clip.actions[1:, JAW])
        assert clip.sound is not None
        assert len(clip.sound) == round((20 / 25 + SOUND_BEFORE_S + SOUND_AFTER_S) * SAMPLE_RATE)
        people.add(round(base[1:].mean()) > 90)
    assert people == {False, True}
    assert np.corrcoef(np.concatenate(sounds), np.concatenate(jaws))[0, 1] > 0.9
    again = next(recorded(data, 4, range(1), 20))
    assert np.array_equal(again.frames, next(recorded(data, 4, range(1), 20)).frames)


def test_references_to_train_on_are_at_rest_or_move_most_more_often(folder: Path) -> None:
    data = TalkDataset(folder, 16, 16)
    curves = data.videos[-1].curves
    assert curves is not None
    moves = np.sort(np.abs(curves).sum(1))
    clips = recorded(data.only("ben"), 6, range(150), 2)
    rank = np.array([np.searchsorted(moves, np.abs(clip.actions[0]).sum()) for clip in clips]) / len(moves)
    # A third each, and .15 of the third that are as they come.
    assert 0.26 < (rank < 0.15).mean() < 0.48 and 0.26 < (rank > 0.85).mean() < 0.48


def test_the_numbers_say_what_is_held_out(folder: Path) -> None:
    data = TalkDataset(folder, 16, 16)
    out = {video.path.stem for video in data.videos if video.split == 0}
    assert out == {"anna_0020", "anna_0021"}
    for clip in held_out(data, 6, 30):
        base = clip.frames[1:].mean() - 2 * clip.actions[1:, YAW].mean() / LIFE["headYaw"]
        assert 42 < base < 48


def test_where_numbers_hold_out_nobody_the_end_of_every_video_is(tmp_path: Path) -> None:
    write_talk(tmp_path, "someone", truth=False)
    data = TalkDataset(tmp_path, 16, 16)
    assert [video.part(False) for video in data.videos] == [(0, 54)]
    assert [video.part(True) for video in data.videos] == [(54, 60)]
    clip = next(recorded(data, 1, range(1), 12))
    assert not clip.actions.any()  # nobody says what moved it
    with pytest.raises(VideoDataError, match=r"clips of 7 frames are wanted, but the longest video to draw from has 6"):
        held_out(data, 1, 7)


def test_streams_begin_from_a_face_at_rest(tmp_path: Path) -> None:
    """Of the frames to train on the one in which least moves, for all starts of a person."""
    jaws = [write_talk(tmp_path, f"anna_{number:04d}", seed=number, base=base) for number, base in ((1, 40), (2, 90))]
    calm = int(jaws[1][0] < jaws[0][0])  # heads turn with every frame
    write_talk(tmp_path, "anna_0020", seed=9, frames=40, base=200)  # held out
    data = TalkDataset(tmp_path, 64, 64)
    found = data.at_rest()
    assert found is not None
    picture, curves = found
    assert np.array_equal(curves, data.videos[calm].curves[0]) and abs(picture.mean() - (40, 90)[calm]) < 3
    starts = _at_rest(data)
    assert len(starts) == 2 and all(np.array_equal(clip.frames[0], picture) for clip in starts)
    assert all(np.array_equal(clip.actions[0], curves) for clip in starts)
    assert not np.array_equal(starts[0].frames[1:], starts[1].frames[1:])
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    assert TalkDataset(tmp_path, 64, 64).at_rest() is None


def test_latents_are_encoded_once_and_are_those_of_the_frames(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    data = TalkDataset(folder, 32, 32)
    encoded = with_latents(data, autoencoder, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(written) == 5
    with_latents(data, autoencoder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == written
    plain, kept = (next(recorded(each, 2, range(1), 9)) for each in (data, encoded))
    assert kept.frames.shape == (9, 0, 0, 3) and kept.latents is not None
    frames = torch.from_numpy(plain.frames).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(autoencoder.encode(frames), torch.from_numpy(kept.latents).float(), atol=2e-2)
    assert np.array_equal(plain.actions, kept.actions)
    assert held_out(encoded, 1, 9)[0].frames.shape == (9, 32, 32, 3)
    encoded.scattered = 1.0
    mixed = next(recorded(encoded, 2, range(1), 9))
    assert mixed.latents is not None and data.videos[0].curves is not None
    at = np.round(mixed.actions[1:, YAW] / LIFE["headYaw"] - data.videos[0].curves[0, YAW] / LIFE["headYaw"]).astype(
        int
    )
    assert (np.diff(at) != 1).any()
    assert any(np.array_equal(mixed.latents[1:], np.load(path)[at]) for path in tmp_path.rglob("*.npy"))
    assert np.array_equal(held_out(encoded, 1, 9)[0].actions, held_out(data, 1, 9)[0].actions)


def test_whoever_has_more_is_drawn_by_the_root_of_it_and_rare_frames_more_often(folder: Path) -> None:
    data = TalkDataset(folder, 16, 16)
    # Anna has two videos to train on and Ben one.
    assert [video.who for video in data.videos if video.split] == ["anna", "anna", "ben"]
    clips = list(recorded(data, 5, range(200), 2))
    ben = sum(clip.frames[1].mean() - 2 * clip.actions[1, YAW] / LIFE["headYaw"] > 90 for clip in clips) / len(clips)
    assert 0.33 < ben < 0.5  # 1 / (1 + sqrt 2) is .41, a share by length would be .33
    video, rng = data.videos[0], np.random.default_rng(0)
    assert video.curves is not None
    curves = np.zeros((1000, len(CURVES)), np.float32)
    curves[:40, CURVES.index("blink")] = 4.0
    rare = replace(video, frames=1000, curves=curves, split=1000)
    drawn = rare.scattered(5000, rng)
    assert 0.17 < (drawn < 40).mean() < 0.27 and len(np.unique(drawn)) > 900
    assert ((drawn >= 0) & (drawn < 1000)).all()
    assert np.ptp(replace(rare, curves=None).scattered(5000, rng)) > 900


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: np.savez(f / "a_0001.npz", arkit=np.zeros((60, 2)), names=["x", "y"]),
            "it needs arkit, tongue, gaze",
        ),
        (lambda f: (f / "a_0001.flac").unlink(), r"a_0001.mp4: no sound in it; nor is there a a_0001 with .flac"),
        (lambda f: (f / "a_0001.flac").write_bytes(b"noise"), r"a_0001.flac: no sound in it"),
        (lambda f: (f / "a_0001.mp4").unlink(), "no videos"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, spoil: object, said: str) -> None:
    write_talk(tmp_path, "a_0001")
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(VideoDataError, match=said):
        next(recorded(TalkDataset(tmp_path, 16, 16), 1, range(1), 5))


def test_rows_that_are_not_the_videos_are_refused(tmp_path: Path) -> None:
    write_talk(tmp_path, "a_0001", frames=30)
    write_talk(tmp_path / "other", "a_0001", frames=31)
    (tmp_path / "other" / "a_0001.npz").replace(tmp_path / "a_0001.npz")
    with pytest.raises(VideoDataError, match=r"a_0001.npz: 31 rows, but a_0001.mp4 has 30 frames"):
        TalkDataset(tmp_path, 16, 16)


def test_a_voice_played_faster_still_belongs_to_its_curves(tmp_path: Path) -> None:
    write_talk(tmp_path, "v_0001", frames=200, pictures=False, seed=5)
    together = []
    for clip in recorded(VoiceDataset(tmp_path), 3, range(40), 50):
        assert clip.actions.shape == (50, len(SPEECH)) and clip.sound is not None
        assert len(clip.sound) == round((50 / 25 + SOUND_BEFORE_S + SOUND_AFTER_S) * SAMPLE_RATE)
        together.append(np.corrcoef(loudness(clip), clip.actions[:, JAW])[0, 1])
    assert np.median(together) > 0.9 and min(together) > 0.5


def test_retiming_moves_sound_and_curves_alike() -> None:
    jaw = np.zeros((100, 1), np.float32)
    jaw[60] = 1
    sound = np.zeros(100 * 640, np.float32)
    sound[60 * 640 + 320] = 1
    for factor in (0.8, 1.25):
        heard, curves = retimed(sound, jaw, factor)
        assert abs(heard.argmax() / 640 - 60.5 / factor) < 0.01
        assert abs((np.arange(len(curves)) + 0.5) @ curves[:, 0] / curves.sum() - 60.5 / factor) < 0.15


def test_other_rooms_and_lines_do_not_move_a_sound() -> None:
    rng = np.random.default_rng(0)
    sound = np.zeros(SAMPLE_RATE, np.float32)
    sound[8000:8400] = 0.5 * np.sin(np.arange(400) / 4)
    for change in (in_a_room, with_noise, over_a_telephone, augmented):
        for _ in range(10):
            heard = change(sound, rng)
            assert heard.shape == sound.shape and heard.dtype == np.float32
            energy = np.convolve(heard**2, np.ones(400), "same")
            assert abs(int(energy.argmax()) - 8200) < 160, change.__name__
    assert np.abs(with_noise(sound, rng) - sound).max() > 0


def test_a_window_ends_at_the_stated_lookahead() -> None:
    config = SpeechConfig(window=16, lookahead=6, dim=8, curves=3)
    model = SpeechEncoder(config)
    torch.nn.init.normal_(model.layers[1].conv2.weight)
    ends = torch.tensor([20, 24])
    mel = torch.randn(1, 40, 80)
    before = model(windows(mel, config, ends))
    for at, changed in ((25, True), (26, False), (10, True), (9, False)):
        other = mel.clone()
        other[:, at] += 1
        assert bool((model(windows(other, config, ends))[:, 0] != before[:, 0]).any()) is changed, at
    with pytest.raises(IndexError, match="40 mel frames do not hold windows that end at"):
        windows(mel, config, torch.tensor([35]))


def test_a_clips_windows_are_those_of_the_whole_sound(tmp_path: Path) -> None:
    write_talk(tmp_path, "a_0020", frames=100, pictures=False)
    data = VoiceDataset(tmp_path)
    recorder = data.recorder(HELD_OUT_SEED)
    clip = recorder.record(12, 1)
    assert clip.sound is not None
    whole = log_mel(recorder._sounds[0])
    config = SpeechConfig(curves=3)
    mine = windows(torch.from_numpy(log_mel(clip.sound))[None], config, torch.from_numpy(ends_of(12, 25)))
    jaw = recorder._curves[0][:, JAW]
    first = next(at for at in range(89) if np.array_equal(jaw[at : at + 12], clip.actions[:, JAW]))
    if first * 4 + 10 < config.window:
        pytest.fail("the seed draws a clip that begins before a window does: take another one")
    ends = torch.arange(first + 1, first + 13) * 4
    theirs = windows(torch.from_numpy(whole)[None], config, ends)
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_an_ear_learns_when_a_mouth_opens(tmp_path: Path) -> None:
    for number in (*range(8), 20, 21):
        write_talk(tmp_path / "voices", f"v_{number:04d}", frames=160, pictures=False, seed=number)
    settings = {
        "stage": "speech", "name": "ear", "data": tmp_path / "voices", "steps": 60, "learning_rate": 2e-3, "warmup": 5,
        "ema": 0.9, "clips": 6, "clip_length": 24, "evaluate_every": 60, "model": {"window": 32, "dim": 32},
    }  # fmt: skip
    recipe = SpeechRecipe.model_validate(settings)
    assert recipe.model.curves == len(SPEECH)
    stage = build_stage(recipe)
    train(stage, tmp_path / "run")
    figures = stage.evaluate(load_speech(tmp_path / "run"), tmp_path / "sheet.png")
    assert figures["jaw"] > 0.8
    on = build_stage(recipe.model_copy(update={"start": tmp_path / "run"}))
    assert on.evaluate(on.model, tmp_path / "sheet.png") == figures
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four videos of one person; beside them, in `vae`, an autoencoder that knows nothing."""
    monkeypatch.setenv("STREAMGEN_CACHE", str(tmp_path / "cache"))
    for number in (1, 2, 20, 21):
        write_talk(tmp_path / "heads", f"anna_{number:04d}", frames=100, base=40, seed=number)
    vae = AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8), decoder_blocks=(1, 1))
    save_autoencoder(Autoencoder(vae), tmp_path / "vae")
    return tmp_path / "heads"


def test_a_face_is_learned_before_its_teacher(heads: Path, tmp_path: Path) -> None:
    model = {
        "in_channels": 4, "height": 4, "width": 4, "dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 1,
        "window": 4, "sink": 1, "action_dim": len(CURVES), "concat_previous": True, "residual": True, "face_dim": 8,
    }  # fmt: skip
    common = {
        "driven_by": "speech", "data": heads, "autoencoder": tmp_path / "vae", "learning_rate": 5e-3,
        "warmup": 1,
        "ema": 0.5, "clips": 2, "model": model,
    }  # fmt: skip
    face = FaceRecipe.model_validate(common | {"stage": "face", "name": "face", "steps": 80, "clip_length": 5})
    stage = build_stage(face)
    batch, nothing = stage.batch(list(recorded(stage.data, 9, range(8), 5)), 0), torch.Generator()
    _, before = stage.loss(batch, stage.model, nothing)
    train(stage, tmp_path / "face")
    _, after = stage.loss(batch, stage.model, nothing)
    assert after["error"] < 0.8 * before["error"]
    assert stage.evaluate(load_face_run(model, tmp_path / "face"), tmp_path / "sheet.png")["psnr"] > 0
    # Of a picture nobody says what drives it.
    fresh = build_stage(face)
    with torch.no_grad():
        for parameter in fresh.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    curves = torch.rand(2, *batch.actions.shape)
    curves[1, :, 1:] = curves[0, :, 1:]
    for unread in (0.0, 1.0):
        fresh.recipe = face.model_copy(update={"unread": unread})
        one, other = (fresh.loss(LatentClips(batch.latents, driven), fresh.model, nothing)[1] for driven in curves)
        assert (one == other) == bool(unread)
    teacher = {"stage": "teacher_forcing", "name": "teacher", "steps": 2, "clip_length": 12, "recycle": 3, "copies": 1}
    with pytest.raises(ValidationError, match="needs a face"):
        TeacherForcingRecipe.model_validate(common | teacher)
    stage = build_stage(TeacherForcingRecipe.model_validate(common | teacher | {"face": tmp_path / "face"}))
    train(stage, tmp_path / "teacher")
    kept, learned = load_transformer(tmp_path / "teacher").face, load_face_run(model, tmp_path / "face")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), learned.parameters(), strict=True))
    for start in (tmp_path / "face", tmp_path / "teacher"):
        on = build_stage(face.model_copy(update={"start": start}))
        assert on.loss(batch, on.model, nothing)[1]["error"] < 0.8 * before["error"]
    wider = FaceRecipe.model_validate(face.model_dump() | {"start": start, "model": model | {"face_dim": 16}})
    with pytest.raises(RecipeError, match="do not fit"):
        build_stage(wider)


def test_a_decoder_learns_to_bend_the_reference(heads: Path, tmp_path: Path) -> None:
    save_transformer(toy_transformer(toy_transformer_config(**WITH_FACE, width=4, action_dim=len(CURVES))), tmp_path)
    recipe = DecoderRecipe.model_validate({
        "stage": "decoder", "name": "decoder", "driven_by": "speech", "data": heads, "warp_dim": 8,
        "autoencoder": tmp_path / "vae", "student": tmp_path, "steps": 2, "learning_rate": 5e-3, "warmup": 1,
        "ema": 0.5, "clip_length": 20, "recycle": 4, "walks": 4, "pairs": 2,
    })  # fmt: skip
    stage = build_stage(recipe)
    stage.turn(1)
    pairs, nothing = stage.batch([], 0), torch.Generator()
    # Of a pair both look at the first frame of their clip, which is another moment.
    latents, pictures = pairs.reference(stage.model)
    assert torch.equal(pictures[::2], pictures[1::2]) and torch.equal(pictures[::2], to_float(pairs.first_frame))
    assert latents.shape[0] == pictures.shape[0] == 4
    loss, _ = stage.loss(pairs, stage.model, nothing)
    loss.backward()
    drawn, warp = stage.model.layers[-2].weight, stage.model.warp
    assert warp is not None
    assert all(weight.grad.abs().sum() > 0 for weight in (warp.conv_flow.weight, warp.fine[-1].weight, drawn))
    # Texture chooses by the mask, and makes none.
    found, chosen = ([], [])
    for weight in (0.0, 10.0):
        stage.recipe = recipe.model_copy(update={"texture_weight": weight})
        stage.model.zero_grad()
        stage.loss(pairs, stage.model, nothing)[0].backward()
        corrected, mask = warp.fine[-1].weight.grad.split([2, 1])
        found.append(torch.cat([drawn.grad.flatten(), corrected.flatten()]))
        chosen.append(mask.clone())
    assert torch.equal(*found) and not torch.allclose(*chosen)
    before = stage.evaluate(stage.model, tmp_path / "sheet.png")
    train(stage, tmp_path / "decoder")
    assert stage.evaluate(stage.model, tmp_path / "sheet.png") != before
    learned = load_autoencoder(tmp_path / "decoder")
    assert learned.config.warp_dim == 8 and learned.decoder.warp is not None
    # Another stage goes on from it, and looks without being told.
    on = build_stage(recipe.model_copy(update={"autoencoder": tmp_path / "decoder", "warp_dim": None}))
    assert torch.equal(on.model.warp.conv_in.weight, learned.decoder.warp.conv_in.weight)
    for changes, said in (
        ({"crop": 24}, "only whole frames say"),
        ({"student": _faceless(tmp_path / "faceless")}, "has no face"),
    ):
        with pytest.raises(RecipeError, match=said):
            build_stage(recipe.model_copy(update=changes))


def _faceless(folder: Path) -> Path:
    save_transformer(toy_transformer(toy_transformer_config(width=4, action_dim=len(CURVES))), folder)
    return folder


def load_face_run(model: dict[str, object], run: Path) -> Face:
    face = Face(TransformerConfig.model_validate(model))
    load_face(face, run)
    return face
