"""Counters and histograms for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 2.0)
_INPUT_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class Metrics:
    """One server's numbers."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.frames_generated = Counter(
            "streamgen_frames_generated", "Frames that the engine made", ["student"], registry=r
        )
        self.frames_sent = Counter("streamgen_frames_sent", "Frames that left for a viewer", ["transport"], registry=r)
        self.frames_dropped = Counter(
            "streamgen_frames_dropped", "Frames that a viewer never got", ["transport", "reason"], registry=r
        )
        self.sounds_dropped = Counter(
            "streamgen_sounds_dropped", "Frames' sounds that a viewer never got", ["transport"], registry=r
        )
        self.microphone_dropped = Counter(
            "streamgen_microphone_dropped_seconds", "Sound of microphones that came too fast to be heard", registry=r
        )
        self.microphone_gaps = Counter(
            "streamgen_microphone_gaps", "Times that a microphone's sound did not come in time", registry=r
        )
        self.messages_dropped = Counter(
            "streamgen_messages_dropped", "Control messages that went nowhere", ["reason"], registry=r
        )
        self.inputs_lost = Counter("streamgen_inputs_lost", "Input events that left the log unread", registry=r)
        self.log_left_out = Counter(
            "streamgen_log_left_out", "Blocks and inputs that a session's log had no room for", registry=r
        )
        self.step_seconds = Histogram(
            "streamgen_step_seconds", "Duration of an engine step", ["student"], registry=r, buckets=_STEP_BUCKETS
        )
        self.deadline_misses = Counter(
            "streamgen_deadline_misses", "Blocks that were ready after they were due", ["student"], registry=r
        )
        self.input_to_frame = Histogram(
            "streamgen_input_to_frame_seconds",
            "From the receipt of an input to the hand-over of the first frame that shows it",
            registry=r,
            buckets=_INPUT_BUCKETS,
        )
        self.sessions = Gauge("streamgen_sessions", "Sessions, by whether they play", ["student", "state"], registry=r)
        self.sessions_refused = Counter("streamgen_sessions_refused", "Sessions not let in", ["reason"], registry=r)
        self.sessions_restored = Counter(
            "streamgen_sessions_restored", "Sessions of the server before this one, by outcome", ["outcome"], registry=r
        )
        self.requests_refused = Counter(
            "streamgen_requests_refused", "Requests and WebSockets answered with an error", ["code"], registry=r
        )
        self.viewers = Gauge("streamgen_viewers", "Viewers connected", ["transport"], registry=r)
        self.worker_ready = Gauge("streamgen_worker_ready", "1 while the worker answers", ["student"], registry=r)
        self.worker_memory = Gauge(
            "streamgen_worker_memory_bytes",
            "What the worker takes, 0 without one: measured when it was ready, estimated before",
            ["student"],
            registry=r,
        )
        self.worker_restarts = Counter(
            "streamgen_worker_restarts", "Worker processes that were lost and replaced", ["student"], registry=r
        )
        self.stream_errors = Counter("streamgen_stream_errors", "Steps that an engine refused", ["student"], registry=r)
        self.streams_ran_away = Counter(
            "streamgen_streams_ran_away", "Streams reset since their latents were no numbers", ["student"], registry=r
        )
        self.epochs_opened = Counter("streamgen_epochs_opened", "Media clock epochs", ["student"], registry=r)
        self.steps = Gauge(
            "streamgen_denoising_steps", "Denoising steps that a block gets now", ["student"], registry=r
        )
        self.artefacts_refused = Counter(
            "streamgen_artefacts_refused", "Compiled graphs that the disk did not take", ["student"], registry=r
        )
        self.engine_fallbacks = Counter(
            "streamgen_engine_fallbacks",
            "Starts of a worker that could not have the engine of choice",
            ["student", "engine"],
            registry=r,
        )
        self.loop_lag = Histogram(
            "streamgen_event_loop_lag_seconds", "How late the event loop wakes up", registry=r, buckets=_LAG_BUCKETS
        )


class StudentMetrics:
    """What the scheduler of one student counts."""

    def __init__(self, metrics: Metrics, student: str) -> None:
        self.frames_generated = metrics.frames_generated.labels(student)
        self.step_seconds = metrics.step_seconds.labels(student)
        self.deadline_misses = metrics.deadline_misses.labels(student)
        self.worker_restarts = metrics.worker_restarts.labels(student)
        self.artefacts_refused = metrics.artefacts_refused.labels(student)
        self.engine_fallbacks = metrics.engine_fallbacks
        self.stream_errors = metrics.stream_errors.labels(student)
        self.epochs_opened = metrics.epochs_opened.labels(student)
