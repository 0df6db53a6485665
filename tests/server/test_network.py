"""A WebRTC viewer behind a bad network: the stream goes on, and afterwards it is as late as it was before."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from tests.server.harness import LiveServer, until
from tests.server.relay import BLACKOUT, CALM, Weather, relay
from tests.server.viewers import Got, PeerClient, follow

RECOVERED_WITHIN_S = 10.0
"""Measured: 0.1 s to 0.3 s. A busy machine shall not decide."""
CLOSE = 5
"""Frames, a quarter of a second."""


async def test_loss_and_delay(serve: Callable[..., LiveServer]) -> None:
    """The stream comes back and is not late.

    What aiortc's decoder makes of pictures with holes is not judged, nor a blackout of seconds, through which its
    buffer does not always come: the Python client connects anew then (tests/clients/test_python_client.py).
    """
    server = serve()
    ticket = server.create(seed=5)
    stream = server.service.sessions.find(ticket.id, ticket.token, "").stream
    async with relay(1) as net, PeerClient(ticket, relay=net) as client:

        def behind() -> int:
            """Frames that the picture shown is older than the newest."""
            return stream.state.frame - client.pictures[-1].frame

        async def usual(seconds: float) -> float:
            samples = []
            for _ in range(round(seconds / 0.05)):
                await asyncio.sleep(0.05)
                samples.append(behind())
            return statistics.median(samples)

        await until(lambda: len(client.pictures) > 5, "video")
        before = await usual(0.7)
        for name, weather, seconds in (
            ("loss of 20%", Weather(loss=0.2), 3.0),
            ("delay of 150 ± 50 ms", Weather(delay_s=0.15, jitter_s=0.05), 2.5),
        ):
            net.weather, shown = weather, len(client.pictures)
            await asyncio.sleep(seconds)
            assert len(client.pictures) - shown > 10 * seconds, f"{name}: half of the frames"
            net.weather, calm_s = CALM, time.monotonic()
            await until(lambda: behind() <= before + CLOSE, f"recovery from {name}", RECOVERED_WITHIN_S)
            print(f"recovered from {name} in {time.monotonic() - calm_s:.2f} s")
            while await usual(0.7) > before + CLOSE:  # a key frame may still be missing
                assert time.monotonic() - calm_s < RECOVERED_WITHIN_S, f"{name}: it stays late"
            assert stream.playing
            await client.ack(await client.key("KeyW", "KeyW" not in client.held))
    assert net.lost > 20


async def test_what_cannot_be_sent_again_is_given_up_for_a_key_frame(serve: Callable[..., LiveServer]) -> None:
    """A second away without a single packet of it ever coming again."""
    server = serve()
    ticket = server.create(seed=6)
    async with relay(1) as net, PeerClient(ticket, relay=net) as client:
        await until(lambda: len(client.pictures) > 5, "video")
        net.repairs, net.weather = False, BLACKOUT
        await asyncio.sleep(1.0)
        net.weather, shown = CALM, len(client.pictures)
        await until(lambda: len(client.pictures) > shown + 10, "video again", RECOVERED_WITHIN_S)
        assert client.repair.given_up == 1
    frames = [seen.frame for seen in client.pictures]
    assert frames == sorted(frames) and max(b - a for a, b in pairwise(frames)) > 10
    follow(6, [Got(0, seen.frame, 0, seen) for seen in client.pictures])
