"""The Python client and an avatar: what a program gives it to say is heard, and shown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from streamgen_client import SOUND_RATE, SessionRefused, Silent, Sound, StreamClient
from streamgen_client.cli import main
from tests.server.harness import LiveServer
from tests.server.synthetic import read
from tests.server.test_talk import as_wave, place_of, words


async def listen(stream: StreamClient, seconds: float) -> list[Sound]:
    return [await stream.next_sound() for _ in range(round(seconds * 25))]


def joined(sounds: list[Sound]) -> np.ndarray:
    assert [sound.number for sound in sounds] == list(range(sounds[0].number, sounds[-1].number + 1))
    return np.concatenate([sound.samples for sound in sounds])


async def test_a_program_speaks_plays_and_interrupts(avatar: LiveServer) -> None:
    async with StreamClient(avatar.url, identity="ben", seed=3, transport="websocket") as stream:
        assert stream.student.speech and stream.student.identities == ("anna", "ben")
        said = words(1.5)
        assert await stream.play(as_wave(said)) == 1.5
        sounds = await listen(stream, 2.5)
        place_of(said, joined(sounds))
        assert 0.5 < await stream.say("A blue boat.") < 3
        await listen(stream, 1.0)
        await stream.interrupt()
        await listen(stream, 1.0)
        assert not joined(await listen(stream, 0.5)).any()
        live = words(1.0, seed=2)
        for piece in live.reshape(-1, 960):
            await stream.speak(piece)
            await asyncio.sleep(0.018)
        place_of(live[: SOUND_RATE // 2], joined(await listen(stream, 2.5)))
        frame = await stream.next()
        assert frame.rgb.shape == (96, 128, 3)


async def test_what_has_no_voice_says_so(avatar: LiveServer, shared: LiveServer) -> None:
    async with StreamClient(shared.url, transport="websocket") as stream:
        with pytest.raises(Silent, match="driven by keys"):
            await stream.next_sound()
        with pytest.raises(SessionRefused, match="no_voice"):
            await stream.say("Hello.")
    async with StreamClient(avatar.url) as stream:
        with pytest.raises(Silent, match='transport="websocket"'):
            await stream.speak(words(0.1))
        assert await stream.say("Hello.") > 0
    with pytest.raises(SessionRefused, match="unknown_identity"):
        async with StreamClient(avatar.url, identity="carl"):
            pass


def test_talk_writes_what_was_seen_and_heard(avatar: LiveServer, tmp_path: Path) -> None:
    said = words(2.0, seed=8)
    wav, out, figures_file = tmp_path / "said.wav", tmp_path / "new" / "said.mp4", tmp_path / "new" / "said.json"
    wav.write_bytes(as_wave(said))
    command = ["talk", avatar.url, "--wav", str(wav), "--identity", "anna", "--out", str(out)]
    result = CliRunner().invoke(main, [*command, "--json", str(figures_file)])
    assert result.exit_code == 0, result.output
    figures = json.loads(figures_file.read_text())
    assert (figures["said_s"], figures["missed_sounds"]) == (2.0, 0)
    assert 0 < figures["silent_ms"] < 5_000
    with av.open(str(out)) as container:
        pictures = [(frame.time or 0.0, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(out)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(pictures) == figures["frames"]
    loud = np.abs(heard[: len(heard) // 480 * 480]).reshape(-1, 480).mean(1) > 0.03
    wanted = np.abs(said.astype(float)).reshape(-1, 480).mean(1) > 1000
    assert loud.sum() == pytest.approx(wanted.sum(), rel=0.15)
    agrees = []
    for at_s, picture in pictures:
        begin = round(at_s * 100)
        around = set(loud[max(0, begin - 4) : begin + 8].tolist())
        if len(around) == 1:
            agrees.append(around == {"KeyW" in read(np.asarray(picture, np.uint8)).keys})
    assert len(agrees) > 15
    assert np.mean(agrees) > 0.95


def test_a_file_without_sound_is_refused(avatar: LiveServer, tmp_path: Path) -> None:
    wav = tmp_path / "noise.wav"
    wav.write_bytes(b"nothing to hear")
    result = CliRunner().invoke(main, ["talk", avatar.url, "--wav", str(wav), "--out", str(tmp_path / "x.mp4")])
    assert result.exit_code == 1 and "unspeakable" in result.output
