"""WebRTC viewers of a real server: aiortc against aiortc on loopback."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Callable

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from server.ice import choose_addresses
from server.settings import IceServer, Settings
from server.webrtc import Peer, ice_links
from tests.server.harness import LiveServer, until
from tests.server.synthetic import make_student
from tests.server.viewers import PeerClient, SocketClient

SDP = {"Content-Type": "application/sdp"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}


async def test_an_ack_names_the_rtp_timestamp_of_the_frame_that_shows_the_input(
    serve: Callable[..., LiveServer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # 12 frames a second are 83 333.3 microseconds and 7500 ticks: a rate at which roundings would show.
    server = serve(own=make_student(tmp_path_factory.mktemp("twelve"), fps=12.0))
    async with PeerClient(server.create()) as client:
        early = await client.key("KeyW", True)  # perhaps before the first frame has left
        await until(lambda: len(client.pictures) > 3, "video")
        taps = []
        for _ in range(5):
            taps.append(await client.tap("Space"))
            await asyncio.sleep(0.2)
        acks = [await client.ack(seq) for seq in (early, *taps)]
        await until(lambda: client.pictures[-1].frame > acks[-1]["frame"], "the last tap in the picture")
        # Nothing is lost on loopback, so pictures and timestamps stand in the same order.
        stamp_of = {seen.frame: stamp for seen, stamp in zip(client.pictures, client.timestamps, strict=False)}
        shown = {seen.frame for seen in client.pictures if "Space" in seen.keys}
        for ack in acks:
            assert ack["rtp"] in client.timestamps
            assert stamp_of[ack["frame"]] == ack["rtp"]
        assert shown & {ack["frame"] for ack in acks[1:]}
        assert shown <= {ack["frame"] for ack in acks[1:]}
        assert client.pictures[-1].keys == {"KeyW"}


async def test_a_closed_peer_keeps_no_encoder_until_the_collector_comes(shared: LiveServer) -> None:
    """An encoder takes megabytes, and a closed connection is in cycles that Python collects much later."""
    gc.disable()
    try:
        async with PeerClient(shared.create()) as client:
            await until(lambda: len(client.pictures) > 3, "video")
            (session,) = shared.service.sessions
            (viewer,) = session.viewers.values()
            assert isinstance(viewer.transport, Peer) and viewer.transport.track and viewer.transport.track.tap
            encoder = weakref.ref(viewer.transport.track.tap.encoder)
            del session, viewer
        await until(lambda: encoder() is None, "the encoder's end")
    finally:
        gc.enable()


def test_links_name_the_ice_servers() -> None:
    settings = Settings(ice_server=["stun:192.0.2.1", 'turn:192.0.2.1,user,se"cret'])  # type: ignore[arg-type]
    assert ice_links(settings) == [
        '<stun:192.0.2.1>; rel="ice-server"',
        '<turn:192.0.2.1>; rel="ice-server"; username="user"; credential="se\\"cret"; credential-type="password"',
    ]
    for bad in ("http://192.0.2.1", "turn:192.0.2.1,user"):
        with pytest.raises(ValueError, match="ICE server"):
            IceServer.parse(bad)


async def test_the_answer_has_the_manners_of_whep(shared: LiveServer) -> None:
    server, ticket = shared, shared.create()
    peer = await a_peer()
    response = ticket.call("POST", "/webrtc", content=peer.localDescription.sdp, headers=SDP, timeout=20)
    assert response.status_code == 201
    assert response.headers["Content-Type"] == "application/sdp"
    assert response.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"
    assert response.headers["ETag"]
    assert "Link" not in response.headers
    location = response.headers["Location"]
    assert location.startswith(f"/v1/sessions/{ticket.id}/webrtc/")
    assert "127.0.0.1" in response.text
    path = location.removeprefix(f"/v1/sessions/{ticket.id}")

    def patch(body: str, **headers: str) -> int:
        return ticket.call("PATCH", path, content=body, headers=FRAGMENT | headers).status_code

    candidate = "a=mid:0\r\na=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\n"
    assert patch(candidate) == 204
    assert patch(candidate, **{"If-Match": response.headers["ETag"]}) == 204
    assert patch(candidate, **{"If-Match": '"other"'}) == 412
    assert patch("a=ice-ufrag:other\r\n") == 422
    assert patch("a=mid:77\r\n") == 422
    assert patch("a=candidate:nonsense\r\n") == 422
    assert ticket.call("PATCH", path, content=candidate, headers=SDP).status_code == 415
    stranger = server.create()
    assert stranger.call("PATCH", path, content=candidate, headers=FRAGMENT).status_code == 404
    assert stranger.call("DELETE", path).status_code == 204, "it has no such peer to end"
    assert patch(candidate) == 204, "which is still there for its owner"
    # Twice, as a browser that says goodbye to a link that was lost.
    assert [ticket.call("DELETE", path).status_code for _ in range(2)] == [204, 204]
    assert patch(candidate) == 404
    assert ticket.call("OPTIONS", "/webrtc").headers["Accept-Post"] == "application/sdp"
    for owned in (ticket, stranger):
        owned.call("DELETE")
    await peer.close()


async def a_peer(video: bool = True, control: bool = True) -> RTCPeerConnection:
    """A peer with an offer."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    if control:
        peer.createDataChannel("control")
    if video:
        peer.addTransceiver("video", "recvonly")
    choose_addresses(peer, ["127.0.0.1"], None)
    await peer.setLocalDescription(await peer.createOffer())
    return peer


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "nonsense",
        "v=0\r\n",
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\n",
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video x\r\n",
    ],
)
async def test_what_is_no_offer_is_refused_and_leaves_nothing(shared: LiveServer, offer: str) -> None:
    ticket = shared.create()
    response = ticket.call("POST", "/webrtc", content=offer, headers=SDP)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_sdp")
    assert ticket.state()["viewers"] == 0
    ticket.call("DELETE")


async def test_an_offer_without_a_known_codec_is_refused_and_leaves_nothing(shared: LiveServer) -> None:
    ticket = shared.create()
    peer = await a_peer()
    # H.264 in single packets (mode 0) is another thing than what the server sends.
    offer = peer.localDescription.sdp.replace("VP8", "VP0").replace("packetization-mode=1", "packetization-mode=0")
    response = ticket.call("POST", "/webrtc", content=offer, headers=SDP)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "no_common_codec")
    assert "VP8 and H.264" in response.json()["error"]["message"]
    assert ticket.state()["viewers"] == 0
    await peer.close()
    ticket.call("DELETE")


async def test_a_peer_that_never_connects_gives_its_place_back(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"connect_within_s": 0.5})
    ticket = server.create()
    peer = await a_peer()
    assert ticket.call("POST", "/webrtc", content=peer.localDescription.sdp, headers=SDP).status_code == 201
    assert ticket.state()["viewers"] == 1
    await until(lambda: ticket.state()["viewers"] == 0, "its place")
    await peer.close()


async def test_a_player_without_a_control_channel_gets_video(shared: LiveServer) -> None:
    ticket = shared.create()
    peer = await a_peer(control=False)
    pictures: list[object] = []

    async def watch(track: object) -> None:
        while True:
            pictures.append(await track.recv())  # type: ignore[attr-defined]

    tasks = []
    peer.on("track", lambda track: tasks.append(asyncio.create_task(watch(track))))
    response = ticket.call("POST", "/webrtc", content=peer.localDescription.sdp, headers=SDP)
    await peer.setRemoteDescription(RTCSessionDescription(response.text, "answer"))
    # Longer than any heartbeat is waited for.
    await until(lambda: len(pictures) > 20 * (shared.settings.away_after_s + 1), "video")
    for task in tasks:
        task.cancel()
    await peer.close()
    await until(lambda: ticket.state()["viewers"] == 0, "its place")
    ticket.call("DELETE")


@pytest.mark.parametrize(
    ("offered", "asked"), [(["VP8"], "h264"), (["H264"], "jpeg"), (["H264", "VP8"], "h264"), (["VP8", "H264"], "jpeg")]
)
async def test_video_and_websocket_of_one_session_agree(shared: LiveServer, offered: list[str], asked: str) -> None:
    ticket = shared.create(seed=71)
    async with PeerClient(ticket, video=offered) as peer, SocketClient(ticket, video=[asked]) as client:
        assert re.findall(r"a=rtpmap:\d+ (VP8|H264)/", peer.response.text)[0] == offered[0]
        await peer.key("KeyS", True)
        await until(lambda: len(peer.pictures) > 10 and len(client.frames) > 10, "both")
        await until(lambda: client.frames[-1].seen.keys == {"KeyS"}, "the key of the one in the picture of the other")
        seen = {got.frame: got.seen for got in client.frames}
        common = [picture for picture in peer.pictures if picture.frame in seen]
        assert len(common) > 5
        assert all(seen[picture.frame] == picture for picture in common)
    ticket.call("DELETE")


async def test_an_ended_session_ends_its_peers(shared: LiveServer) -> None:
    ticket = shared.create()
    async with PeerClient(ticket) as client:
        await until(lambda: client.of("ready"), "ready")
        await asyncio.to_thread(ticket.call, "DELETE")
        await until(client.closed.is_set, "the channel closes")
        assert client.of("error")[-1]["code"] == "session_deleted"


async def test_a_closed_page_frees_its_place(shared: LiveServer) -> None:
    ticket = shared.create()
    async with PeerClient(ticket) as client:
        await until(lambda: client.pictures, "video")
    await until(lambda: ticket.state()["viewers"] == 0, "its place")
    await until(lambda: ticket.state()["state"] == "away", "away")
    ticket.call("DELETE")


async def test_bad_messages_on_the_channel(shared: LiveServer) -> None:
    ticket = shared.create()
    async with PeerClient(ticket) as client:
        client.channel.send("{")
        await until(lambda: [e["code"] for e in client.of("error")] == ["bad_message"], "an error")
        client.channel.send(b"\x00\x01")
        client.channel.send("x" * 5000)
        await until(lambda: "message_too_large" in [e["code"] for e in client.of("error")], "an error")
        await until(client.closed.is_set, "the channel closes")
    await until(lambda: ticket.state()["viewers"] == 0, "its place")
    ticket.call("DELETE")
