"""Voice agents on a real server: what a program says in Realtime's events is seen and heard by those who watch."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import websockets

from server.agents import AGENT_HZ
from tests.server.harness import LiveServer, Ticket, until
from tests.server.test_talk import check_lips, heard, place_of, words
from tests.server.viewers import SocketClient


class AgentClient:
    """A program that talks. told: the server's events, newest last."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket, self.told = socket, list[dict[str, Any]]()

    async def read(self) -> None:
        async for message in self.socket:
            self.told.append(json.loads(message))

    async def send(self, kind: str, **fields: object) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def say(self, samples: np.ndarray, response: str = "r1") -> None:
        """As the Realtime interface does: quarters of a second, as fast as they go."""
        for piece in np.array_split(samples, max(1, len(samples) // (AGENT_HZ // 4))):
            delta = base64.b64encode(piece.astype("<i2").tobytes()).decode()
            await self.send("response.output_audio.delta", response_id=response, delta=delta)

    @property
    def kinds(self) -> list[str]:
        return [event["type"].removeprefix("output_audio_buffer.") for event in self.told]


@asynccontextmanager
async def agent_of(ticket: Ticket, query: str = "", token: str | None = None) -> AsyncIterator[AgentClient]:
    address = f"{ticket.server.url.replace('http', 'ws', 1)}/v1/sessions/{ticket.id}/agent{query}"
    headers = {"Authorization": f"Bearer {ticket.token if token is None else token}"}
    async with websockets.connect(address, additional_headers=headers) as socket:
        agent = AgentClient(socket)
        reading = asyncio.create_task(agent.read())
        yield agent
    await asyncio.gather(reading, return_exceptions=True)


def loud(client: SocketClient, frames: int = 1) -> bool:
    """Whether any of the last frames is heard."""
    return any(np.abs(client.sounds[frame][1]).max() > 1000 for frame in sorted(client.sounds)[-frames:])


async def test_what_an_agent_says_is_seen_and_heard(viewer: SocketClient) -> None:
    said = words(2.0)
    async with agent_of(viewer.ticket, "?rate=48000") as agent:
        await agent.send("session.created", session={"voice": "any"})  # says nothing about sound
        await agent.say(said)
        await agent.send("response.output_audio.done", response_id="r1")
        await until(lambda: "stopped" in agent.kinds, "the end of what was said")
        await asyncio.sleep(0.5)
        sound, _ = heard(viewer)
        at = place_of(said, sound)
        assert not sound[:at].any() and not sound[at + len(said) :].any()
        check_lips(viewer)
        assert agent.told == [
            {"type": "output_audio_buffer.started", "response_id": "r1"},
            {"type": "output_audio_buffer.stopped", "response_id": "r1"},
        ]


async def test_binary_messages_are_said_as_they_come(viewer: SocketClient) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(2 * AGENT_HZ) / AGENT_HZ)).astype("<i2").tobytes()
    async with agent_of(viewer.ticket) as agent:
        for at in range(0, len(tone), 3333):  # halves of samples, too
            await agent.socket.send(tone[at : at + 3333])
        await until(lambda: sum(np.abs(sound).max() > 4000 for _, sound in viewer.sounds.values()) > 40, "two seconds")
        frames = sorted(frame for frame, (_, sound) in viewer.sounds.items() if np.abs(sound).max() > 4000)
        sound = np.concatenate([viewer.sounds[frame][1] for frame in frames[2:-2]]).astype(float)
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
        assert abs(float(spectrum.argmax()) * 48_000 / len(sound) - 440) < 2
        assert agent.kinds == ["started"]  # it did not say that it had said all


@pytest.mark.parametrize("who", ["input_audio_buffer.speech_started", "output_audio_buffer.clear", "a viewer"])
async def test_an_interruption_ends_the_response(viewer: SocketClient, who: str) -> None:
    async with agent_of(viewer.ticket) as agent:
        await agent.say(words(10.0)[::2])
        await until(lambda: loud(viewer), "the beginning")
        if who == "a viewer":
            await viewer.send({"type": "interrupt"})
        else:
            await agent.send(who)
        await until(lambda: agent.kinds == ["started", "cleared"], "the end, told")
        await agent.say(words(2.0)[::2])  # it was under way
        await asyncio.sleep(1.0)
        assert not loud(viewer, 10)
        await agent.say(words(2.0)[::2], "r2")
        await until(lambda: loud(viewer), "the next response")
        assert agent.told[2:] == [{"type": "output_audio_buffer.started", "response_id": "r2"}]


async def test_plain_sound_goes_on_after_its_own_interruption(viewer: SocketClient) -> None:
    async with agent_of(viewer.ticket) as agent:
        for _ in range(2):
            await agent.socket.send((8000 * np.ones(AGENT_HZ)).astype("<i2").tobytes())
            await until(lambda: loud(viewer), "something to hear")
            await agent.send("output_audio_buffer.clear")
            await until(lambda: not loud(viewer, 5), "silence")
        assert agent.kinds == ["started", "cleared"] * 2


async def test_plain_sound_goes_on_after_somebody_elses_interruption(viewer: SocketClient) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(AGENT_HZ) / AGENT_HZ)).astype("<i2").tobytes()
    async with agent_of(viewer.ticket) as agent:
        await agent.socket.send(tone[:-1])  # half a sample is under way
        await until(lambda: loud(viewer), "the beginning")
        await viewer.send({"type": "interrupt"})
        await until(lambda: agent.kinds == ["started", "cleared"], "the end, told")
        await agent.socket.send(tone)  # at once: of what was interrupted
        await asyncio.sleep(0.8)
        assert not loud(viewer, 10)
        first = max(viewer.sounds) + 1
        await agent.socket.send(tone)
        await until(lambda: max(viewer.sounds) > first + 40, "what comes after a pause")
        said = np.concatenate([sound for frame, (_, sound) in sorted(viewer.sounds.items()) if frame >= first])
        assert np.abs(said).max() < 9000  # no bytes out of step
        assert 0.9 < (np.abs(said) > 2000).sum() / 48_000 / 0.84 < 1.1  # of a sine's samples so many are that loud


async def test_bad_events_are_answered_and_harm_nothing(viewer: SocketClient) -> None:
    async with agent_of(viewer.ticket) as agent:
        for bad in (
            "no JSON",
            "[1]",
            '{"type": "response.audio.delta"}',
            '{"type": "response.audio.delta", "delta": "?"}',
            '{"type": "response.audio.delta", "delta": "é"}',
            "[" * 20_000,
        ):
            await agent.socket.send(bad)
        await agent.socket.send(json.dumps({"type": ["a"]}))
        await agent.say(words(30.0))  # at 24 kHz 60 s; of 70 s
        await agent.say(words(10.0))
        await until(lambda: len(agent.told) >= 9, "the answers")
        errors = [event["error"]["code"] for event in agent.told if event["type"] == "error"]
        assert errors[:7] == ["bad_message"] * 7
        assert set(errors[7:]) == {"voice_full"}
        assert loud(viewer, 50)


async def test_who_may_not_speak_is_told_why(avatar: LiveServer, shared: LiveServer) -> None:
    ticket = await asyncio.to_thread(avatar.create)
    walker = await asyncio.to_thread(shared.create)
    for owner, token, code in ((ticket, "wrong", "unauthorized"), (walker, None, "no_voice")):
        async with agent_of(owner, token=token) as agent:
            await until(lambda: agent.told, "the refusal")
            await agent.socket.wait_closed()
        assert [event["error"]["code"] for event in agent.told] == [code]
        assert (agent.socket.close_code, agent.socket.close_reason) == (1008, code)
    async with agent_of(ticket) as agent:
        await asyncio.to_thread(ticket.call, "DELETE")
        await agent.socket.wait_closed()
    assert agent.socket.close_reason == "session_deleted"
