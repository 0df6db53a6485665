"""Compiled artefacts: a changed student never meets a stale one, a corrupt one is rebuilt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engines.openvino import OpenVINOEngine
from engines.protocol import StepRequest
from engines.store import ArtefactStore
from streamgen.student import Student

ROOT = Path(__file__).parents[2]


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "cache")
    assert store.get("a", "b") is None
    assert store.put(b"compiled", "a", "b")
    assert store.get("a", "b") == b"compiled"
    assert store.get("ab") is None
    assert store.get("a", "b", "") is None


def test_a_damaged_artefact_counts_as_none(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    store.put(b"compiled", "a")
    path = store.path("a")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert store.get("a") is None
    assert not path.exists()


_FULL = """
import json, logging, resource, sys
from pathlib import Path
from engines.store import ArtefactStore
store, told = ArtefactStore(Path(sys.argv[1])), []
logging.getLogger("engines.store").addFilter(lambda record: told.append(record.getMessage()))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
taken = [store.put(bytes(10_000), name) for name in "ab"], store.put(b"short", "c")
print(json.dumps([taken, ArtefactStore.refused, told]))
"""


def test_a_full_disk_is_no_error_and_is_told_once(tmp_path: Path) -> None:
    """The limit on a file's size is a disk that is full: half of the artefact is written before it says so. It is one
    of a process, whose other threads may write too, so it is that of a process of its own.
    """
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    taken, refused, [told] = json.loads(done.stdout)
    assert taken == [[False, False], True] and refused == 2
    assert str(tmp_path) in told and "File too large" in told
    store = ArtefactStore(tmp_path)
    assert store.get("a") is None and store.get("c") == b"short"
    assert list(tmp_path.iterdir()) == [store.path("c")]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    store.put(b"compiled", "a")
    for name, age_s in (("left", 7200), ("being-written", 0)):
        partial = tmp_path / f"{name}.partial"
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - age_s,) * 2)
    store.put(b"compiled", "b")
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".partial"}
    assert [path.name for path in tmp_path.glob("*.partial")] == ["being-written.partial"]


_BUSY = """
import sys
from pathlib import Path
from engines.store import ArtefactStore
store, me, seen = ArtefactStore(Path(sys.argv[1]), most_bytes=3_000_000), int(sys.argv[2]), 0
for turn in range(60):
    key = str(turn % 5)
    assert store.put(bytes([me]) * 1_000_000, key)
    found = store.get(key)
    assert found is None or (len(found) == 1_000_000 and len(set(found)) == 1), "half of one, half of another"
    seen += found is not None
assert seen and not ArtefactStore.refused
"""


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Two write, read and tidy up at once: each finds whole artefacts or none."""
    both = [subprocess.Popen([sys.executable, "-c", _BUSY, str(tmp_path), str(n)], cwd=ROOT) for n in (1, 2)]
    assert [process.wait(60) for process in both] == [0, 0]


def test_the_oldest_go_when_the_store_is_full(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path, most_bytes=3000)
    for index in range(5):
        assert store.put(bytes(1000), str(index))
        os.utime(store.path(str(index)), (index, index))
    kept = [index for index in range(5) if store.get(str(index)) is not None]
    assert kept == [3, 4]
    assert store.put(bytes(5000), "too large for it") and store.get("too large for it") is not None


def test_engine_reuses_rebuilds_and_never_mixes(
    plain_student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engines.openvino")
    store = ArtefactStore(tmp_path / "cache")

    def compiled() -> int:
        count = sum("compiled" in record.message and "in" in record.message for record in caplog.records)
        caplog.clear()
        return count

    def first_latents(student: Student) -> np.ndarray:
        engine = OpenVINOEngine(student, precision="fp32", store=store)
        engine.open("s", student.start(0))
        return engine.step([StepRequest("s", np.zeros((1, 5), np.float32), 2)])[0].latents

    fresh = first_latents(plain_student)
    assert compiled() == 3
    assert np.array_equal(first_latents(plain_student), fresh)
    assert compiled() == 0
    for path in store.root.iterdir():
        path.write_bytes(b"rubbish" * 20)
    assert np.array_equal(first_latents(plain_student), fresh)
    assert compiled() == 3
    # Other weights in the same place: another hash, so nothing of the old student is used.
    changed = tmp_path / "changed"
    shutil.copytree(plain_student.path, changed)
    weights = changed / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    for at in range(len(data) - 4000, len(data), 2):
        data[at + 1] ^= 0x80  # the sign of a bf16 value
    weights.write_bytes(bytes(data))
    other = Student.from_pretrained(changed)
    assert other.hash != plain_student.hash
    assert not np.array_equal(first_latents(other), fresh)
    assert compiled() == 3
