"""Traces of inputs, as a collector receives them from a real server."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server import tracing
from tests.server.harness import LiveServer, until
from tests.server.viewers import Client, PeerClient, SocketClient


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver. spans: what came, attributes as dictionaries."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Receive)

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(_attributes(resource.resource)["service.name"])
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    {
                        "name": span.name,
                        "trace": span.trace_id,
                        "id": span.span_id,
                        "parent": span.parent_span_id,
                        "began_ns": span.start_time_unix_nano,
                        "ended_ns": span.end_time_unix_nano,
                        **_attributes(span),
                    }
                )

    def trace_of(self, session: str, seq: int) -> list[dict[str, Any]]:
        """The spans of an input, root first, then by time; empty while they are not all there."""
        roots = [span for span in self.spans if (span.get("session.id"), span.get("streamgen.seq")) == (session, seq)]
        spans = [span for span in self.spans if roots and span["trace"] == roots[0]["trace"]]
        return sorted(spans, key=lambda span: (span["parent"], span["ended_ns"])) if len(spans) >= 6 else []


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _attributes(holder: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Traces go here for the length of a test."""
    receiver = Collector()
    Thread(target=receiver.serve_forever, daemon=True).start()
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    tracing.start()
    yield receiver
    receiver.shutdown()
    receiver.server_close()


@pytest.mark.parametrize("transport", [SocketClient, PeerClient])
async def test_a_key_press_is_one_trace_from_receipt_to_packet(
    shared: LiveServer, collector: Collector, transport: type[Client]
) -> None:
    ticket = shared.create()
    began_ns = time.time_ns()
    async with transport(ticket) as client:  # type: ignore[abstract]
        ack = await client.ack(await client.key("KeyW", True))
        root, *parts = await until(lambda: collector.trace_of(ticket.id, ack["seq"]), "the trace of the key")
    ticket.call("DELETE")
    assert root["name"] == "input" and root["parent"] == b""
    assert root["streamgen.transport"] == ("websocket" if transport is SocketClient else "webrtc")
    assert (root["streamgen.frame"], root["streamgen.generation"]) == (ack["frame"], 0)
    assert [part["name"] for part in parts] == ["wait", "step", "mailbox", "encode", "send"]
    assert {part["parent"] for part in parts} == {root["id"]}
    # One thing after another, without a gap, within the time that the test knows of.
    assert root["began_ns"] == parts[0]["began_ns"] and parts[-1]["ended_ns"] == root["ended_ns"]
    assert all(part["ended_ns"] == after["began_ns"] for part, after in pairwise(parts))
    assert all(part["began_ns"] <= part["ended_ns"] for part in parts)
    assert began_ns < root["began_ns"] and root["ended_ns"] < time.time_ns()
    # The acknowledgement says the same: from receipt to hand-over.
    assert (parts[2]["ended_ns"] - root["began_ns"]) / 1e6 == pytest.approx(ack["server_ms"], abs=0.01)
    step = parts[1]
    assert step["streamgen.steps"] in (1, 2) and step["streamgen.rows"] >= 1 and step["streamgen.worker"] >= 1
    taken_s = step["streamgen.engine_s"] + step["streamgen.open_s"] + step["streamgen.queue_s"]
    assert taken_s == pytest.approx((step["ended_ns"] - step["began_ns"]) / 1e9, abs=1e-5)
    assert min(step["streamgen.engine_s"], step["streamgen.queue_s"]) > 0
    assert collector.services == {"streamgen"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_or_imported_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # importing it would be an error, and a warning
    monkeypatch.setattr(tracing.log, "warning", pytest.fail)
    tracing.start()
    assert tracing._tracer is None


def test_without_the_extra_a_warning_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        tracing.start()
    assert tracing._tracer is None
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set and nothing is traced" in caplog.text and "`otel`" in caplog.text
