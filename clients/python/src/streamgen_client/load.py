"""Several viewers at once, each with a session of its own, and what they get of the server together."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from streamgen_client.client import StreamClient, Transport
from streamgen_client.errors import SessionRefused, StreamLost

_ARRIVE_EVERY_S = 1.0
_SETTLE_S = 3.0
"""Rates are those of the last three seconds."""

_SAMPLE_EVERY_S = 1.0
_TAP_S, _TAP_EVERY_S = 0.12, 0.7


async def load(
    url: str, viewers: int, seconds: float, transport: Transport, api_key: str, tell: Callable[[dict[str, Any]], None]
) -> None:
    """Let viewers arrive one after the other, have those that were let in watch and tap keys, and measure.

    `tell` is called twice: when the measuring begins, with who was let in, and when it ends, with the figures, while
    all still watch. Raises ClientError for what is not a refusal.
    """
    async with AsyncExitStack() as stack:
        streams: list[StreamClient] = []
        refused: list[SessionRefused] = []
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(_end, tasks)
        for index in range(viewers):
            try:
                stream = await stack.enter_async_context(
                    StreamClient(url, api_key=api_key, seed=index, transport=transport)
                )
            except SessionRefused as error:
                refused.append(error)
                continue
            streams.append(stream)
            tasks += [asyncio.create_task(_watch(stream)), asyncio.create_task(_steer(stream, index))]
            await asyncio.sleep(_ARRIVE_EVERY_S)
        await asyncio.sleep(_SETTLE_S)
        tell(
            {
                "viewers": viewers,
                "transport": transport,
                "admitted": len(streams),
                "refused": [{"code": error.code, "retry_after_s": error.retry_after_s} for error in refused],
            }
        )
        before = [stream.stats for stream in streams]
        rates: list[float] = []
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        for sample in itertools.count(1):
            await asyncio.sleep(start_s + min(seconds, sample * _SAMPLE_EVERY_S) - time.monotonic())
            rates += [stream.stats.fps for stream in streams]
            if time.monotonic() >= start_s + seconds:
                break
        elapsed_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
        after = [stream.stats for stream in streams]
        latency_s = [
            each
            for old, new in zip(before, after, strict=True)
            for each in new.latency_s[-(new.inputs - old.inputs) :]
            if new.inputs > old.inputs
        ]
        tell(
            {
                "seconds": round(elapsed_s, 2),
                "target_fps": streams[0].student.fps if streams else None,
                "fps": _percentiles(rates, 5, 50),
                "fps_of_each": [
                    round((new.frames - old.frames) / elapsed_s, 2) for old, new in zip(before, after, strict=True)
                ],
                "missed": sum(new.missed - old.missed for old, new in zip(before, after, strict=True)),
                "latency_ms": {"inputs": len(latency_s), **_percentiles([each * 1e3 for each in latency_s], 50, 99)},
                "reconnects": sum(stats.reconnects for stats in after),
                "cpu_cores": round(cpu_s / elapsed_s, 3),
            }
        )


def _percentiles(values: list[float], *percents: int) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in percents}


async def _watch(stream: StreamClient) -> None:
    """Decode every frame, as one who looks at it does."""
    async for _ in stream:
        pass


async def _steer(stream: StreamClient, index: int) -> None:
    keys = stream.student.keys
    for tap in itertools.count(index):
        await stream.keys(keys[tap % len(keys)], down=True)
        await asyncio.sleep(_TAP_S)
        await stream.keys(keys[tap % len(keys)], down=False)
        await asyncio.sleep(_TAP_EVERY_S - _TAP_S)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        # A stream that was lost shows in the rates; anything else is a mistake of this program.
        if isinstance(error, Exception) and not isinstance(error, StreamLost):
            raise error
