"""`serve` as a process: how it starts, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.cli import page_url, serve
from server.keys import key
from server.listening import Server, bind
from server.settings import Settings
from streamgen.student import Student
from tests.server.harness import make_certificate, until
from tests.server.process import process
from tests.server.viewers import SocketClient


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(student: Student, tmp_path: Path, number: signal.Signals) -> None:
    with process(student, tmp_path, "--log-json") as server:
        async with SocketClient(server.create()) as client:
            await client.watch(3)
            server.popen.send_signal(number)
            await until(lambda: client.closed, "the viewer is shown out")
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.log[1:]]
    assert "the server has ended" in [line["message"] for line in lines]
    assert not any("Traceback" in line for line in server.log)
    assert not any("traceback" in line for line in lines)


async def test_a_killed_server_leaves_nothing(student: Student, tmp_path: Path) -> None:
    with process(student, tmp_path) as server:
        async with SocketClient(server.create()) as client:
            await client.watch(3)
            server.popen.kill()
            await until(lambda: client.closed, "the connection breaks")


async def test_a_server_for_strangers_from_a_file(student: Student, tmp_path: Path) -> None:
    """HTTPS, and sessions only for who has a key, all from a configuration file; a flag wins over it."""
    made = CliRunner().invoke(key, ["--sessions", "1"]).output.split()
    secret, known = made[1], made[3]
    (tmp_path / "keys").write_text(f"# the first friend\n{known}  # one session\n")
    certificate = make_certificate(tmp_path)
    (tmp_path / "serve.yaml").write_text(
        json.dumps({**certificate, "api_key_file": str(tmp_path / "keys"), "host": "192.0.2.1", "max_sessions": 3})
    )
    flags = ("--config", str(tmp_path / "serve.yaml"), "--host", "127.0.0.1")
    with process(student, tmp_path, *flags, certificate=tmp_path / "cert.pem") as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert server.post(None).status_code == 401
        async with SocketClient(server.create(secret)) as client:
            await client.watch(3)
            assert server.post(secret).json()["error"]["code"] == "key_full"
            server.popen.send_signal(signal.SIGTERM)
            await until(lambda: client.closed, "the viewer is shown out")
        assert server.wait() == 0
    assert not any(secret in line for line in server.log)


def test_mistakes_are_explained(tmp_path: Path, student: Student) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(serve, list(arguments))
        assert result.exit_code != 0
        return result.output

    assert "no student at" in run("--student", str(tmp_path / "nowhere"))
    assert "ICE server" in run("--student", str(student.path), "--ice-server", "http://x")
    assert "cannot listen" in run("--student", str(student.path), "--host", "192.0.2.1", "--allow-anyone")
    assert "192.0.2.1 can be reached from other machines" in run("--host", "192.0.2.1")
    assert "No such option" in run("--prot", "80")
    (tmp_path / "serve.yaml").write_text("prot: 80\nthreads: many\n")
    output = run("--config", str(tmp_path / "serve.yaml"), "--port", "x")
    assert f"{tmp_path}/serve.yaml: prot: there is no such setting; is port meant?\n" in output
    assert f"{tmp_path}/serve.yaml: threads: Input should be a valid integer" in output
    assert "--port: Input should be a valid integer" in output


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "damage", "remedy"),
    [
        ("model_index.json", _cut, "configuration cannot be read"),
        ("transformer/config.json", Path.unlink, "configuration cannot be read"),
        ("vae/diffusion_pytorch_model.safetensors", _cut, "export"),
        ("transformer/diffusion_pytorch_model.safetensors", Path.unlink, "export"),
        ("starts.safetensors", _cut, "export"),
        ("step_2.onnx", Path.unlink, "export"),
        ("commit.onnx", Path.unlink, "export"),
    ],
)
def test_a_damaged_student_is_named(
    tmp_path: Path, student: Student, name: str, damage: Callable[[Path], object], remedy: str
) -> None:
    folder = shutil.copytree(student.path, tmp_path / "student")
    damage(folder / name)
    result = CliRunner().invoke(serve, ["--student", str(folder)])
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line.startswith("Error: ") and str(folder) in line and name in line and remedy in line


def test_what_is_there_at_the_start_is_not_looked_through_again(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or closed connections, which are in cycles, would stay until a quarter as many objects have come as there are."""
    frozen: list[int] = []
    monkeypatch.setattr(Server, "run", lambda server, sockets: frozen.append(gc.get_freeze_count()))
    try:
        result = CliRunner().invoke(serve, ["--student", str(student.path), "--port", "0"])
        assert result.exit_code == 0, result.output
    finally:
        gc.unfreeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert frozen[0] > 50_000


def test_a_port_in_use_is_named(student: Student) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(serve, ["--student", str(student.path), "--port", str(port)])
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line == f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "http://[::1]:80/"),
        ("::1", "http://[::1]:80/"),
        ("localhost", "http://localhost:80/"),
    ],
)
def test_the_page_has_an_address(host: str, url: str) -> None:
    assert page_url(Settings(host=host, allow_anyone=True), 80) == url
