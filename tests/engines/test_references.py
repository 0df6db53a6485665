"""Whom a picture shows: latents of it, on a student that was never shown anything, and what is no such picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from engines import reference
from engines.cli import generate
from engines.reference import PictureError, References
from streamgen.models.autoencoder import to_float
from streamgen.models.loading import load_autoencoder
from streamgen.student import Reference, Student, reference_from, reference_text
from tests.engines.test_talk import write_voice


def somebody(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(squares).resize((width, height), Image.Resampling.BICUBIC)


def file_of(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def likewise(student: Student, **config: object) -> Student:
    """The same student with other figures in its configuration."""
    return Student(student.path, student.config.model_copy(update=config), student.hash)


def assert_same(a: Reference, b: Reference) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_picture_becomes_the_latents_of_its_middle(talker: Student) -> None:
    references, picture = References(talker), somebody()
    read = references.read(file_of(picture))
    autoencoder = load_autoencoder(talker.path).eval()
    with torch.no_grad():
        wanted = autoencoder.encode(to_float(torch.from_numpy(np.array(picture)[None])))[0].numpy()
    assert read.latents.dtype == np.float16
    np.testing.assert_allclose(read.latents, wanted, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(read.picture, np.asarray(picture))
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste(picture, (32, 0))
    assert_same(references.read(file_of(wide)), read)
    turned = file_of(
        picture.transpose(Image.Transpose.ROTATE_90),
        exif=bytes.fromhex("45786966000049492a0008000000") + bytes.fromhex("01001201030001000000060000000000 0000"),
    )
    assert_same(references.read(turned), read)
    clear = picture.copy()
    clear.putalpha(0)
    assert_same(references.read(file_of(clear)), references.read(file_of(Image.new("RGB", (64, 64)))))
    for kind in ("JPEG", "WEBP"):
        assert np.abs(references.read(file_of(picture, kind)).latents.astype(np.float32) - wanted).mean() < 0.2


def test_it_is_what_the_stream_begins_from(talker: Student) -> None:
    whom = References(talker).read(file_of(somebody()))
    own, start = talker.start(3, "ben"), talker.start(3, reference=whom)
    assert (start.seed, start.frame, start.latents.shape) == (3, own.frame, own.latents.shape)
    assert (start.latents == whom.latents).all() and (start.sink == whom.latents).all() and not start.actions.any()
    np.testing.assert_array_equal(start.picture, whom.picture)
    assert not np.array_equal(own.picture, whom.picture)
    assert_same(reference_from(reference_text(whom), talker.config), whom)
    with pytest.raises(ValueError, match="reshape"):
        reference_from(reference_text(whom._replace(latents=whom.latents[:1])), talker.config)


@pytest.mark.parametrize(
    ("file", "config", "said"),
    [
        (b"no picture", {}, "no picture that can be read as PNG, JPEG, WEBP"),
        (b"", {}, "no picture that can be read"),
        (file_of(somebody())[:200], {}, "no picture that can be read"),
        (file_of(somebody(), "GIF"), {}, "no picture that can be read"),
        (file_of(somebody(200, 100)), {}, "200x100 pixels: at most 10000 in all"),
        (file_of(somebody()), {"likeness": 90.0}, r"knows no such pictures \(it sees this one with \d+\.\d dB"),
        (file_of(somebody()), {"likeness": None}, "cannot be whoever a picture shows"),
    ],
)
def test_what_says_nobody_is_named(
    talker: Student, monkeypatch: pytest.MonkeyPatch, file: bytes, config: dict[str, object], said: str
) -> None:
    monkeypatch.setattr(reference, "_MOST_PIXELS", 10_000)
    with pytest.raises(PictureError, match=said):
        References(likewise(talker, **config)).read(file)


def test_a_video_of_whom_a_picture_shows(talker: Student, tmp_path: Path) -> None:
    sound, picture, out = write_voice(tmp_path / "said.wav", 0.5), tmp_path / "whom.png", tmp_path / "said.mp4"
    picture.write_bytes(file_of(somebody()))
    command = ["--student", str(talker.path), "--audio", str(sound), "--reference", str(picture), "--out", str(out)]
    result = CliRunner().invoke(generate, command)
    assert result.exit_code == 0 and out.stat().st_size > 1000, result.output
    both = CliRunner().invoke(generate, [*command, "--identity", "ben"])
    assert both.exit_code == 1 and "give one of them" in both.output
    picture.write_bytes(b"nothing")
    assert "no picture that can be read" in CliRunner().invoke(generate, command).output
