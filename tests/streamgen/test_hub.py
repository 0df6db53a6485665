"""A student from the hub: a pinned revision, and nothing of it that could run code. The hub is a local one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamgen.student import Student, StudentError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a hub that has `someone/toy`, and the folder behind it."""
    folder = Path(shutil.copytree(toy_folder, tmp_path_factory.mktemp("hub") / "toy"))
    (folder / "run_me.py").write_text("raise SystemExit('it ran')\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80pickle")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            revisions = [f"/api/models/someone/toy/revision/{name}" for name in ("v1", COMMIT)]
            if path in revisions:
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "someone/toy", "sha": COMMIT, "siblings": siblings}).encode()
            elif path == f"/api/models/someone/toy/tree/{COMMIT}":
                content = json.dumps([_entry(name, file) for name, file in files.items()]).encode()
            else:
                prefix = f"/someone/toy/resolve/{COMMIT}/"
                name = path.removeprefix(prefix)
                if not path.startswith(prefix) or name not in files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RevisionNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = files[name].read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


def _entry(name: str, file: Path) -> dict[str, object]:
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}


def _open(name: str, address: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    code = f"from streamgen.student import Student; s = Student.from_pretrained({name!r}); print(s.path); print(s.hash)"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_pinned_student_is_fetched_without_what_could_run(
    hub: tuple[str, Path], revision: str, tmp_path: Path
) -> None:
    address, folder = hub
    result = _open(f"someone/toy@{revision}", address, tmp_path)
    assert result.returncode == 0, result.stderr
    path, digest = result.stdout.splitlines()
    assert digest == Student.from_pretrained(folder).hash
    fetched = {file.suffix for file in Path(path).rglob("*") if file.is_file()}
    assert fetched == {".json", ".safetensors", ".onnx", ".md"}


def test_a_revision_that_is_not_there(hub: tuple[str, Path], tmp_path: Path) -> None:
    result = _open("someone/toy@v2", hub[0], tmp_path)
    assert "StudentError: someone/toy@v2 cannot be fetched from the hub" in result.stderr


def test_without_a_revision_nothing_is_fetched() -> None:
    with pytest.raises(StudentError, match="OWNER/NAME@REVISION"):
        Student.from_pretrained("someone/toy")
