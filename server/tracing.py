"""Traces of inputs for OpenTelemetry: one for each input, from its receipt to the packets of the frame that shows it.

Off, and nothing of it imported, until `start` finds a collector in the environment. Spans are written when the frame
has left, from times that were taken on the way: an input that nobody traces costs nothing more.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from server.inputs import Event
from server.mailbox import Frame, Making

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger("streamgen.server.tracing")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_tracer: Tracer | None = None


def start() -> None:
    """Trace from now on if the environment names an OTLP endpoint.

    Everything else is OpenTelemetry's own variables too: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_BSP_….
    """
    global _tracer  # noqa: PLW0603 - one for the process, as a logger is
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("%s is set and nothing is traced: install streamgen with the extra `otel`", endpoint)
        return
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "streamgen"}))
    # A provider of our own: the global one would have FastAPI trace every request of a health check as well.
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("streamgen.server")
    log.info("inputs are traced: %s", endpoint)


def input_shown(
    event: Event, making: Making, frame: Frame, transport: str, taken_s: float, encoded_s: float, sent_s: float
) -> None:
    """Write the trace of an input. All times are on the monotonic clock.

    making: of the first frame that shows it, which a slow viewer may never get; frame: the one that left instead.
    taken_s, encoded_s, sent_s: when the transport took it, had it encoded, had handed it to the network.
    """
    if _tracer is None:
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, set_span_in_context

    wall_ns = time.time_ns() - time.monotonic_ns()

    def at(time_s: float) -> int:
        return wall_ns + round(time_s * 1e9)

    trace = _tracer.start_span(
        "input",
        Context(),
        SpanKind.SERVER,
        {
            "session.id": making.stream,
            "streamgen.transport": transport,
            "streamgen.seq": event.seq or 0,
            "streamgen.frame": frame.index,
            "streamgen.generation": frame.generation,
        },
        start_time=at(event.received_s),
    )
    step = {
        "streamgen.steps": making.steps,
        "streamgen.worker": making.worker,
        "streamgen.rows": making.rows,
        "streamgen.engine_s": making.step_s,
        "streamgen.open_s": making.open_s,
        "streamgen.queue_s": making.made_s - making.began_s - making.open_s - making.step_s,
    }
    context = set_span_in_context(trace)
    for name, began_s, ended_s, attributes in (
        ("wait", event.received_s, making.began_s, {}),
        ("step", making.began_s, making.made_s, step),
        ("mailbox", making.made_s, taken_s, {}),
        ("encode", taken_s, encoded_s, {}),
        ("send", encoded_s, sent_s, {}),
    ):
        _tracer.start_span(name, context, attributes=attributes, start_time=at(began_s)).end(at(ended_s))
    trace.end(at(sent_s))
