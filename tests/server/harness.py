"""Real servers on loopback, and sessions on them."""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.listening import Server, bind, uvicorn_config
from server.service import Service
from server.settings import Settings
from server.students import Offer
from server.worker import BuildEngine
from streamgen.student import Student
from tests.server.synthetic import build_synthetic

PATIENCE_S = 30.0
"""How long anything may take before a test gives up on it; nothing is asserted about times below it."""


async def until(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Wait until the condition is true; returns its value."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what}: not within {within_s:g} s")


class LiveServer:
    """uvicorn on a thread with a loop of its own, on a free port."""

    def __init__(
        self,
        student: Student,
        orders: Path,
        settings: Settings | None = None,
        web: Path | None = None,
        others: Sequence[Student] = (),
        build: BuildEngine | None = None,
        **engine: Any,
    ) -> None:
        self.student, self.orders = student, orders
        self.settings = settings or Settings()
        offers = [
            Offer(each, build or partial(build_synthetic, each.config, orders, **engine)) for each in (student, *others)
        ]
        self._listener = bind("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if self.settings.tls_cert else 'http'}://127.0.0.1:{self.port}"
        self.trust = trusting(self.settings.tls_cert)
        self._server = Server(uvicorn_config(self.settings, offers, web))
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._listener])

        asyncio.run(serve())

    def start(self, wait_ready: bool = True) -> Self:
        self._thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                response = self.get("/readyz" if wait_ready else "/healthz")
                if response.status_code == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), self._what_is_left()

    def _what_is_left(self) -> str:
        """Of a server that does not end: where its threads and its tasks are."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        threads = [
            f"thread {names.get(ident)}:\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()
        ]
        return "\n".join(["the server did not end", *map(repr, asyncio.all_tasks(self.loop)), *threads])

    @property
    def service(self) -> Service:
        service: Service = self._server.lifespan.state["service"]
        return service

    @property
    def worker_pid(self) -> int:
        """Of the first student's worker."""
        scheduler = self.service.students.default.scheduler
        assert scheduler is not None and scheduler.worker.pid is not None
        return scheduler.worker.pid

    async def ask(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Call the application without a socket, on the server's loop."""
        await self._server.config.app(scope | {"state": self._server.lifespan.state}, receive, send)  # type: ignore[operator]

    def order(self, name: str, text: str = "") -> Path:
        path = self.orders / name
        path.write_text(text)
        return path

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, whatever others they have."""
        return sum(
            sample.value
            for family in self.service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, verify=self.trust, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, verify=self.trust, **options)

    def create(self, seed: int = 1, key: str | None = None, **wish: str) -> Ticket:
        response = self.post("/v1/sessions", json={"seed": seed, **wish}, headers=bearer(key))
        assert response.status_code == 201, response.text
        body = response.json()
        return Ticket(self, body["id"], body["token"], body)


def bearer(secret: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def trusting(certificate: Path | None) -> ssl.SSLContext:
    """What a client believes in: the machine's authorities, and this certificate."""
    return ssl.create_default_context(cafile=certificate)


def make_certificate(folder: Path) -> dict[str, str]:
    """A self-signed certificate of 127.0.0.1: the settings that make a server use it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}


@dataclass
class Ticket:
    """A session, and the right to it."""

    server: LiveServer
    id: str
    token: str
    body: dict[str, Any]

    @property
    def url(self) -> str:
        return f"{self.server.url}/v1/sessions/{self.id}"

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.token)

    def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        headers = self.headers | options.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, verify=self.server.trust, **options)

    def state(self) -> dict[str, Any]:
        body: dict[str, Any] = self.call("GET").json()
        return body
