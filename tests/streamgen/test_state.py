"""Stream state, noise, actions and scripts."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from streamgen.actions import WORLD_KEYS, action_vector
from streamgen.config import AutoencoderConfig, StudentConfig
from streamgen.noise import block_noise
from streamgen.script import ScriptError, read_script
from streamgen.state import StateError, StreamState
from tests.toy import toy_transformer_config


def _config(**changes: object) -> StudentConfig:
    transformer = toy_transformer_config(**changes)
    return StudentConfig(
        name="toy",
        fps=17.5,
        width=48,
        height=32,
        keys=WORLD_KEYS,
        step_plans={1: (1.0,), 2: (1.0, 0.5)},
        steps=2,
        transformer=transformer,
        vae=AutoencoderConfig(latent_channels=4),
    )


def _state(config: StudentConfig, frames: int) -> StreamState:
    rng = np.random.default_rng(0)
    state = StreamState.begin(config, "hash", 7)
    for _ in range(frames):
        latents = rng.standard_normal((1, *config.latent_shape)).astype(np.float16)
        state = state.extended(config, latents, (rng.random((1, 5)) < 0.5).astype(np.float32))
    return state


@pytest.mark.parametrize("frames", [0, 1, 40])
def test_bytes_read_back_as_the_same_state(frames: int) -> None:
    config = _config(sink=2)
    state = _state(config, frames)
    again = StreamState.from_bytes(state.to_bytes(), config, "hash")
    assert (again.seed, again.frame, again.student) == (7, frames, "toy")
    for name in ("latents", "actions", "sink", "sink_actions"):
        assert np.array_equal(getattr(again, name), getattr(state, name))


def test_the_picture_that_a_decoder_looks_at_is_part_of_it() -> None:
    plain = _config(sink=1, face_dim=8, residual=True)
    config = plain.model_copy(update={"vae": AutoencoderConfig(latent_channels=4, warp_dim=8)})
    picture = np.random.default_rng(1).integers(256, size=(32, 48, 3), dtype=np.uint8)
    latents, actions = np.zeros((3, *config.latent_shape), np.float16), np.zeros((3, 5), np.float32)
    state = StreamState.begin(config, "hash", 7, latents, actions, picture).extended(config, latents, actions)
    assert np.array_equal(StreamState.from_bytes(state.to_bytes(), config, "hash").picture, picture)
    assert StreamState.begin(config, "hash", 7).picture.shape == picture.shape
    with pytest.raises(StateError, match="4608 bytes more"):
        StreamState.from_bytes(state.to_bytes(), plain, "hash")
    with pytest.raises(ValueError, match=r"\(32, 47, 3\); wanted \(32, 48, 3\)"):
        StreamState.begin(config, "hash", 7, latents, actions, picture[:, 1:])
    assert StreamState.begin(plain, "hash", 7).picture.size == 0


def test_state_keeps_no_more_than_it_needs() -> None:
    config = _config(sink=2)
    state = _state(config, 100)
    assert len(state.latents) == config.transformer.history_frames
    assert len(state.sink) == 2
    assert np.array_equal(state.sink, _state(config, 5).sink)


def test_every_flipped_byte_is_noticed() -> None:
    config = _config()
    data = _state(config, 3).to_bytes()
    for at in range(0, len(data), 37):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(StateError):
            StreamState.from_bytes(bytes(damaged), config, "hash")
    with pytest.raises(StateError, match="do not start"):
        StreamState.from_bytes(b"", config, "hash")


def _forged(frame: object = 5, seed: object = 1, history: object = 3, extra: bytes = b"", spoil: bool = False) -> bytes:
    """Bytes with a right checksum whose content is the caller's."""
    meta = json.dumps(
        {"student": "toy", "student_hash": "hash", "seed": seed, "frame": frame, "history": history}
    ).encode()
    latents = np.full((3, 4, 4, 6), np.nan if spoil else 0, np.float16)
    body = struct.pack("<8sHI", b"SGSTATE\0", 1, len(meta)) + meta + latents.tobytes() + bytes(3 * 5 * 4) + extra
    return body + hashlib.sha256(body).digest()


def test_what_a_forger_writes_is_checked() -> None:
    config = _config()
    assert StreamState.from_bytes(_forged(), config, "hash").frame == 5
    for forged, said in (
        (_forged(seed=-1), "seed"),
        (_forged(frame="x"), "frame"),
        (_forged(frame=2), "3 latents at frame 2"),
        (_forged(history=4), "shorter"),
        (_forged(history=2), "more than its header"),
        (_forged(history=10**6, frame=10**7), "at most"),
        (_forged(extra=b"1234"), "4 bytes more"),
        (_forged(spoil=True), "not finite"),
    ):
        with pytest.raises(StateError, match=said):
            StreamState.from_bytes(forged, config, "hash")
    newer = bytearray(_forged()[:-32])
    newer[8] = 2
    with pytest.raises(StateError, match="version 2"):
        StreamState.from_bytes(bytes(newer) + hashlib.sha256(newer).digest(), config, "hash")


def test_a_foreign_state_is_refused() -> None:
    config = _config()
    with pytest.raises(StateError, match="open it with that student"):
        StreamState.from_bytes(_state(config, 3).to_bytes(), config, "another")


def test_noise_is_a_function_of_seed_frame_and_step() -> None:
    base = block_noise(1, 2, 3, (4, 5))
    assert np.array_equal(base, block_noise(1, 2, 3, (4, 5)))
    for other in (block_noise(2, 2, 3, (4, 5)), block_noise(1, 3, 3, (4, 5)), block_noise(1, 2, 0, (4, 5))):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.9
    large = block_noise(2**64 - 1, 10**12, 1, (200_000,))
    assert abs(large.mean()) < 0.01
    assert abs(large.std() - 1) < 0.01
    with pytest.raises(ValueError, match="seed -1"):
        block_noise(-1, 0, 0, (1,))


def test_unknown_keys_count_for_nothing() -> None:
    assert action_vector({"KeyW", "Space", "KeyQ"}, WORLD_KEYS).tolist() == [1, 0, 0, 0, 1]


def test_scripts(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("# walk\n0.1 KeyW\n0.1 KeyW ArrowLeft # turn\n\n0.1\n")
    script = read_script(path, WORLD_KEYS, 17.5)
    # 0.3 s are 5.25 frames: rounding does not add up over the lines.
    assert script.shape == (5, 5)
    assert script[:, 0].tolist() == [1, 1, 1, 1, 0]
    for text, said in (
        ("x KeyW", "line 1.*'x'"),
        ("1 KeyQ", "unknown key KeyQ"),
        ("-1 KeyW", "not a number of seconds"),
        ("", "no line"),
    ):
        path.write_text(text)
        with pytest.raises(ScriptError, match=said):
            read_script(path, WORLD_KEYS, 17.5)
