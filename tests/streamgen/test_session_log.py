"""A session's log: rows for changes only, no more than it may hold, and what is left out is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgen.session_log import Header, Input, SessionLog, read_log


def header(log: SessionLog) -> Header:
    return Header(
        session="s",
        student="toy",
        student_hash="0",
        engine="none",
        precision="exact",
        device="paper",
        left_out_blocks=log.left_out_blocks,
        left_out_inputs=log.left_out_inputs,
    )


def test_blocks_share_a_row_until_something_changes(tmp_path: Path) -> None:
    log = SessionLog()
    log.begin(0, 2**64 - 1, 3)
    conditions = [((), 2, True), ((), 2, False), (("KeyW",), 2, False), (("KeyW",), 1, False), (("KeyW",), 1, True)]
    for frame, (keys, steps, recache) in enumerate(conditions, 3):
        log.block(frame, keys, steps, recache, frame)
    log.begin(1, 5, 3)
    log.block(3, (), 2, True, 2**32 - 1)
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(log.parts(header(log))))
    log.block(4, (), 2, False, 0)  # reading it did not end it
    (first, runs), (second, others) = read_log(file).generations
    assert (first.seed, second.generation) == (2**64 - 1, 1)
    assert [(run.frame, run.keys, run.steps, run.recache, list(run.checksums)) for run in runs] == [
        (3, (), 2, True, [3, 4]),
        (5, ("KeyW",), 2, False, [5]),
        (6, ("KeyW",), 1, False, [6]),
        (7, ("KeyW",), 1, True, [7]),
    ]
    assert list(others[0].checksums) == [2**32 - 1]
    file.write_bytes(b"".join(log.parts(header(log))))
    assert [list(run.checksums) for run in read_log(file).generations[1][1]] == [[2**32 - 1], [0]]


def test_a_row_does_not_grow_for_hours(tmp_path: Path) -> None:
    log = SessionLog()
    log.begin(0, 1, 3)
    for frame in range(3, 3003):
        log.block(frame, (), 2, frame == 3, frame)
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(log.parts(header(log))))
    [(_, runs)] = read_log(file).generations
    assert [(run.frame, run.recache) for run in runs] == [(3, True), (1027, False), (2051, False)]
    assert [crc32 for run in runs for crc32 in run.checksums] == list(range(3, 3003))


def test_what_finds_no_room_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamgen.session_log.MOST_BYTES", 2000)
    log = SessionLog()
    log.begin(0, 1, 0)
    edge = Input(frame=0, viewer="v", seq=1, t=0.0, received_s=0.0, code="KeyW", down=True)
    for frame in range(100):
        log.input(frame, edge)
        log.block(frame, (), 2, frame == 0, 0)
    log.begin(1, 1, 0)
    log.block(0, (), 2, True, 0)
    written = b"".join(log.parts(header(log)))
    assert len(written) < 3000
    assert log.take_left_out() == log.left_out_blocks + log.left_out_inputs > 150
    assert log.take_left_out() == 0
    file = tmp_path / "log.jsonl"
    file.write_bytes(written)
    read = read_log(file)
    [(_, runs)] = read.generations
    kept = sum(len(list(run.checksums)) for run in runs)
    assert kept + read.header.left_out_blocks == 101
    assert [run.frame for run in runs] == list(range(kept))
