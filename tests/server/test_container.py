"""The Containerfile as far as it can be tried without a container engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.settings import SettingsError, load_settings
from tests.server.harness import LiveServer, make_certificate
from tests.test_install import PACKAGES

ROOT = Path(__file__).parents[2]


def instructions(*names: str) -> list[str]:
    """What follows these words in the Containerfile, continued lines joined."""
    lines = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text("utf-8"), flags=re.MULTILINE)
    pairs = [line.split(" ", 1) for line in lines.replace("\\\n", "").splitlines() if line]
    return [rest for name, rest in pairs if name in names]


def variables() -> dict[str, str]:
    """Those of the image that are settings."""
    given = re.findall(r"(STREAMGEN_\w+)=(\S+)", " ".join(instructions("ENV")))
    assert given
    return dict(given)


def test_an_image_is_built_from_what_a_wheel_is() -> None:
    """tests/test_install.py builds one from these, and runs it."""
    patterns = (ROOT / ".dockerignore").read_text("utf-8").splitlines()[1:]
    assert patterns[0] == "*"
    let_in = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    assert let_in == {"LICENSE", "pyproject.toml", "constraints", *PACKAGES}
    assert all((ROOT / name).exists() for name in let_in)
    constraints = re.findall(r"--constraint (\S+)", " ".join(instructions("RUN")))
    assert constraints and all((ROOT / path).is_file() for path in constraints)


def test_it_demands_keys_and_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="give an API key"):
        load_settings(None, {})
    monkeypatch.setenv("STREAMGEN_SERVE_API_KEY", "sha256:" + "0" * 64)
    settings = load_settings(None, {})
    ports = f"{settings.port}/tcp {settings.media_ports.first}-{settings.media_ports.last}/udp"  # type: ignore[union-attr]
    assert instructions("EXPOSE") == [ports]


def test_nobody_in_it_is_root_and_it_can_be_stopped() -> None:
    (user,), (signal,) = instructions("USER"), instructions("STOPSIGNAL")
    assert int(user.partition(":")[0]) > 0 and signal == "SIGTERM"


def test_the_health_check_asks_the_server(serve: Callable[..., LiveServer], shared: LiveServer, tmp_path: Path) -> None:
    (health,) = instructions("HEALTHCHECK")
    command = health.partition(" CMD ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def healthy(port: int, **settings: str) -> bool:
        environment = {**os.environ, "PATH": path, "STREAMGEN_SERVE_PORT": str(port), **settings}
        return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False).returncode == 0

    tls = make_certificate(tmp_path)
    secured = serve(settings=tls).port
    assert healthy(shared.port) and not healthy(secured)
    assert healthy(secured, STREAMGEN_SERVE_TLS_CERT=tls["tls_cert"])
