"""The HTTP interface of a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets import Origin

from server.pages import pages
from server.security import allowed_hosts
from tests.server.harness import LiveServer, until
from tests.server.synthetic import START_FRAMES
from tests.server.viewers import SocketClient, follow


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and error code; every error has the same form."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "retryable"}
    return response.status_code, error["code"]


def test_a_session_from_birth_to_death(shared: LiveServer) -> None:
    response = shared.post("/v1/sessions", json={"student": "synthetic", "seed": 2**64 - 1})
    body = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/v1/sessions/{body['id']}"
    assert body["seed"] == 2**64 - 1
    assert body["student"]["keys"] == list(shared.student.config.keys)
    assert body["state"] == "away"
    assert len(body["token"]) >= 32
    bearer = {"Authorization": f"Bearer {body['token']}"}
    path = f"/v1/sessions/{body['id']}"
    again = shared.get(path, headers=bearer)
    assert again.status_code == 200
    assert "token" not in again.json()
    assert httpx.delete(shared.url + path, headers=bearer).status_code == 204
    assert code(shared.get(path, headers=bearer)) == (401, "unauthorized")


async def test_a_session_is_paused_resumed_and_reset(shared: LiveServer) -> None:
    ticket = shared.create(seed=1)

    async def ask(what: str, **body: int) -> dict[str, Any]:
        response = await asyncio.to_thread(ticket.call, "POST", what, json=body or None)
        assert response.status_code == 200, response.text
        assert response.json().keys() == ticket.state().keys()
        return dict(response.json())

    async with SocketClient(ticket) as client:
        await client.watch(3)
        for _ in (1, 2):  # the second changes nothing
            assert (await ask("/pause"))["state"] == "paused"
        paused = await ask("/reset", seed=2)
        assert (paused["state"], paused["seed"], paused["generation"]) == ("paused", 2, 1)
        assert paused["frame"] == START_FRAMES == ticket.state()["frame"]
        for _ in (1, 2):
            assert (await ask("/resume"))["state"] == "playing"
        await until(lambda: sum(got.generation == 1 for got in client.frames) > 5, "the new stream")
        assert (len(client.of("paused")), len(client.of("resumed"))) == (1, 1)
        assert ticket.state()["viewers"] == 1 and ticket.state()["frame"] > START_FRAMES
    follow(2, [got for got in client.frames if got.generation == 1])
    assert code(ticket.call("POST", "/reset", json={"seed": 2**64})) == (422, "invalid_request")
    ticket.call("DELETE")


def test_only_the_bearer_of_the_token_gets_in(shared: LiveServer) -> None:
    ticket, other = shared.create(), shared.create()
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {ticket.token}"}, other.headers):
        for method, path in (("GET", ""), ("GET", "/log"), ("DELETE", ""), ("POST", "/webrtc")):
            response = httpx.request(method, ticket.url + path, headers=headers, json={"seed": 1})
            assert code(response) == (401, "unauthorized")
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert ticket.state()["generation"] == 0
    for owned in (ticket, other):
        owned.call("DELETE")


def test_errors_say_what_is_wrong(shared: LiveServer) -> None:
    assert code(shared.post("/v1/sessions", json={"student": "nobody"})) == (404, "unknown_student")
    assert code(shared.post("/v1/sessions", json={"seed": -1})) == (422, "invalid_request")
    assert code(shared.post("/v1/sessions", json={"sede": 1})) == (422, "invalid_request")
    assert code(shared.post("/v1/sessions", content=b"{", headers={"Content-Type": "application/json"}))[0] == 422
    assert code(shared.get("/v1/nothing")) == (404, "not_found")
    assert code(httpx.put(shared.url + "/v1/sessions")) == (405, "method_not_allowed")
    ticket = shared.create()
    assert code(ticket.call("POST", "/webrtc", content="v=0")) == (415, "unsupported_media_type")
    assert code(ticket.call("POST", "/reset", json={})) == (422, "invalid_request")
    ticket.call("DELETE")


def test_other_hosts_and_other_sites_are_refused(shared: LiveServer) -> None:
    port = shared.port
    assert shared.get("/healthz", headers={"Host": f"localhost:{port}"}).status_code == 200
    assert shared.get("/healthz", headers={"Host": f"[::1]:{port}"}).status_code == 200
    refused = shared.metric("streamgen_requests_refused_total", code="unknown_host")
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "[", ""):
        assert code(shared.get("/healthz", headers={"Host": host})) == (421, "unknown_host")
    assert "'evil.example'" in shared.get("/healthz", headers={"Host": "evil.example"}).json()["error"]["message"]
    assert shared.metric("streamgen_requests_refused_total", code="unknown_host") == refused + 5
    assert shared.get("/healthz", headers={"Origin": shared.url}).status_code == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}"):
        response = shared.post("/v1/sessions", headers={"Origin": origin})
        assert code(response) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in response.headers


async def test_websockets_of_other_sites_are_refused(shared: LiveServer) -> None:
    ticket = shared.create(seed=9)
    path = f"/v1/sessions/{ticket.id}/stream"
    foreign: list[tuple[str, str | None, tuple[int, str]]] = [
        (f"ws://127.0.0.1:{shared.port}", "http://evil.example", (403, "foreign_origin")),
        (f"ws://127.0.0.1:{shared.port}", "null", (403, "foreign_origin")),
        ("ws://evil.example", "http://evil.example", (421, "unknown_host")),
        ("ws://evil.example", None, (421, "unknown_host")),
    ]
    async with SocketClient(ticket) as client:
        for address, origin, refusal in foreign:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(
                    address + path,
                    origin=None if origin is None else Origin(origin),
                    host="127.0.0.1",
                    port=shared.port,
                )
            answer = refused.value.response
            assert (answer.status_code, json.loads(answer.body or b"")["error"]["code"]) == refusal
        await client.watch(5)
    follow(9, client.frames)
    ticket.call("DELETE")


async def test_other_names_and_sites_can_be_allowed(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"allow_host": ("Play.Example",), "allow_origin": ("https://site.example",)})
    for headers in ({"Host": "play.example:8443"}, {"Origin": "https://site.example"}):
        assert server.get("/healthz", headers=headers).status_code == 200
    for headers in ({"Host": "other.play.example"}, {"Origin": "http://site.example"}, {"Origin": "https://x.example"}):
        assert server.get("/healthz", headers=headers).status_code in (403, 421)
    address = f"ws://play.example/v1/sessions/{server.create().id}/stream"
    origin = Origin("https://site.example")
    async with websockets.connect(address, origin=origin, host="127.0.0.1", port=server.port) as socket_:
        await socket_.send("{")
        told = json.loads(await socket_.recv())
    assert told["code"] == "bad_message"  # let in as far as the session's own check


def test_an_allowed_site_may_read_what_it_is_told(serve: Callable[..., LiveServer]) -> None:
    site = "https://site.example"
    server = serve(settings={"allow_origin": (site + "/",)})
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization,content-type"}

    def preflight(origin: str) -> httpx.Response:
        return httpx.options(f"{server.url}/v1/sessions/x/webrtc/y", headers={"Origin": origin} | asked)

    allowed = preflight(site)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, site)
    assert {"PATCH", "DELETE"} <= set(allowed.headers["Access-Control-Allow-Methods"].split(", "))
    assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in allowed.headers
    assert code(preflight("https://other.example")) == (403, "foreign_origin")
    long = b" " * (server.settings.max_body_bytes + 1)
    for answer in (
        server.post("/v1/sessions", headers={"Origin": site}),
        server.post("/v1/sessions", headers={"Origin": site}, json={"student": "nobody"}),
        server.post("/v1/sessions", headers={"Origin": site}, content=long),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == site
        exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        assert {"Location", "ETag", "Link", "Retry-After"} <= exposed
    assert "Access-Control-Allow-Origin" not in server.get("/healthz").headers


def test_allowed_hosts_follow_the_bound_address() -> None:
    assert allowed_hosts("127.0.0.1", None, ()) == {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts("192.0.2.7", "203.0.113.5", ("Play.Example",)) >= {"192.0.2.7", "203.0.113.5", "play.example"}
    assert socket.gethostname().lower() in allowed_hosts("0.0.0.0", None, ())


def test_long_bodies_are_refused_with_and_without_a_length(shared: LiveServer) -> None:
    # It may hold a picture.
    long = b" " * (shared.settings.max_body_bytes + shared.settings.max_picture_bytes + 1)
    headers = {"Content-Type": "application/json"}
    assert code(shared.post("/v1/sessions", content=long, headers=headers)) == (413, "body_too_large")
    assert code(shared.post("/v1/sessions", content=iter([long[:40_000], long]), headers=headers)) == (
        413,
        "body_too_large",
    )
    assert shared.get("/healthz").status_code == 200


def test_what_can_be_asked_without_a_session(shared: LiveServer) -> None:
    assert shared.get("/v1/students").json()["students"][0]["name"] == "synthetic"
    assert shared.get("/v1/schema").json()["version"] == 1
    assert shared.get("/docs").status_code == 404


def test_the_interface_is_documented(shared: LiveServer) -> None:
    document = shared.get("/openapi.json").json()
    session = "/v1/sessions/{session_id}"
    for method, path in (
        *(("get", session), ("delete", session)),
        *(("post", f"{session}/{what}") for what in ("reset", "pause", "resume")),
    ):
        operation = document["paths"][path][method]
        assert operation["description"]
        assert operation["security"] == [{"token": []}]
        for status in ("401", "503"):
            answer = operation["responses"][status]["content"]["application/json"]["schema"]
            assert answer == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert document["paths"]["/v1/sessions"]["post"]["security"] == [{"API key": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    listed = document["components"]["schemas"]["ListedStudent"]["properties"]
    assert listed["state"]["enum"] == ["loaded", "starting", "unloaded"]


async def test_metrics_tell_what_happened(shared: LiveServer) -> None:
    ticket = shared.create()
    async with SocketClient(ticket) as client:
        await client.ack(await client.tap("Space"))
        await client.watch(5)
        text = shared.get("/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {
        "streamgen_frames_generated_total",
        "streamgen_frames_sent_total",
        "streamgen_deadline_misses_total",
        "streamgen_step_seconds_count",
        "streamgen_input_to_frame_seconds_count",
        "streamgen_sessions",
        "streamgen_viewers",
        "streamgen_worker_restarts_total",
        "streamgen_epochs_opened_total",
        "streamgen_event_loop_lag_seconds_count",
    } <= names
    assert shared.metric("streamgen_input_to_frame_seconds_count") >= 1
    ticket.call("DELETE")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    for name in (
        "index.html",
        "main.js",
        "style.css",
        "main.test.js",
        "node_modules/x.js",
        ".hidden.js",
        "package.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_the_page_is_served_and_nothing_else_of_its_folder(serve, web: Path) -> None:  # type: ignore[no-untyped-def]
    server = serve(web=web)
    for path, name, media_type in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html", "index.html", "text/html; charset=utf-8"),
        ("/main.js", "main.js", "text/javascript; charset=utf-8"),
        ("/style.css", "style.css", "text/css; charset=utf-8"),
    ):
        response = server.get(path)
        assert (response.text, response.headers["Content-Type"]) == (name, media_type)
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in (
        "/main.test.js",
        "/node_modules/x.js",
        "/.hidden.js",
        "/package.json",
        "/../synthetic.py",
        "/%2e%2e/x.js",
    ):
        assert code(server.get(path)) == (404, "not_found")


def test_without_a_page_there_is_none() -> None:
    assert pages(None) == {}
