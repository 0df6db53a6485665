"""WebRTC viewers: an offer in, an answer out, in the manner of WHEP (draft-ietf-wish-whep).

The client receives one video track, in VP8 or H.264, whichever it offers first, and opens the data channel `control`.
From an avatar it receives sound too, in Opus, and may send a microphone's.
Media sections are optional. Candidates may trickle in by PATCH (RFC 8840); an ICE restart is refused, a new offer is as
quick.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import OperationError
from aiortc.sdp import SessionDescription, candidate_from_sdp

from server.control import receive
from server.errors import Refused
from server.ice import choose_addresses, media_addresses, without_mdns
from server.mailbox import Frame
from server.metrics import Metrics
from server.rtp import MailboxTrack, RtpEncoder, SenderTap
from server.session import Session
from server.settings import Settings
from server.sound import EpochSender, InOrder, OpusEncoder, SoundTrack, listen, ntp_of_clock
from server.video import CODECS, encoder_for
from server.viewers import CLOSE_NORMAL, Viewer

log = logging.getLogger("streamgen.server.webrtc")

CONTROL_CHANNEL = "control"
_MOST_MEDIA_SECTIONS = 4
_MOST_CANDIDATES = 128
_LAST_PORT = 65535
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_MOST_BUFFERED_BYTES = 64 * 1024
_FAREWELL_S = 0.1


class Peer:
    """One peer connection and the viewer behind it (a `viewers.Transport`)."""

    kind = "webrtc"
    has_rtp = True

    def __init__(self, peers: Peers, session: Session) -> None:
        self.id = secrets.token_urlsafe(12)
        self.etag = f'"{secrets.token_urlsafe(9)}"'
        self.session = session
        self.track: MailboxTrack | None = None
        self.has_control = False
        self.offer: SessionDescription | None = None
        self.candidates = 0
        self._peers = peers
        self._channel: RTCDataChannel | None = None
        self._closing = False
        self._listening: list[asyncio.Task[None]] = []
        servers = [RTCIceServer(s.url, s.username, s.credential) for s in peers.settings.ice_server]
        # An empty list, not the absence of one: aiortc would then ask a public STUN server.
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.viewer: Viewer = session.attach(self)
        self._deadline = asyncio.get_running_loop().call_later(peers.settings.connect_within_s, self._give_up)
        self.connection.on("connectionstatechange", self._on_state)
        self.connection.on("datachannel", self._on_channel)

    # What the viewer needs of its transport.

    @property
    def rtp_origin(self) -> int | None:
        return self.track.rtp_origin if self.track else None

    @property
    def present(self) -> bool:
        """A player without a control channel sends no heartbeat: its connection speaks for it."""
        return not self.has_control and self.connection.connectionState == "connected"

    def send(self, text: str, important: bool) -> bool:
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return False
        if channel.bufferedAmount > _MOST_BUFFERED_BYTES and not important:
            return False
        channel.send(text)
        return True

    def close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self._deadline.cancel()
            for task in self._listening:
                task.cancel()
            self.session.detach(self.viewer)
            self._peers.ended(self)

    # The connection's own events.

    def _on_state(self) -> None:
        state = self.connection.connectionState
        if state == "connected":
            self._deadline.cancel()
            if not self.has_control:
                self.session.refresh(time.monotonic())
        elif state in ("failed", "closed"):
            self.close(CLOSE_NORMAL, state)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != CONTROL_CHANNEL or self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("close", lambda: self.close(CLOSE_NORMAL, "the control channel was closed"))
        self.session.greet(self.viewer)

    def _on_message(self, data: str | bytes) -> None:
        if not self._closing:
            receive(self.session, self.viewer, data, self._peers.settings.max_message_bytes)

    def _give_up(self) -> None:
        log.info("peer %s: no connection in time", self.id)
        self.close(CLOSE_NORMAL, "no connection in time")

    def release(self) -> None:
        """Let go of what is large: a closed connection refers to itself, and is kept until the collector comes by."""
        self.connection.remove_all_listeners()
        if self._channel is not None:
            self._channel.remove_all_listeners()
        if self.track is not None:
            self.track.tap = None

    def hear(self, track: MediaStreamTrack) -> None:
        """A microphone is there."""
        voice = self.session.stream.voice
        if track.kind == "audio" and voice is not None:
            self._listening.append(asyncio.create_task(listen(track, voice, self.viewer.id)))

    def taken(self, frame: Frame) -> None:
        """aiortc came for a frame and encodes it now."""
        self._peers.metrics.frames_sent.labels(self.kind).inc()
        self.viewer.taken(frame, time.monotonic())

    def sent(self, frame: Frame, encoded_s: float) -> None:
        """Its packets have left."""
        self.viewer.sent(frame, encoded_s, time.monotonic())


class Peers:
    """All peer connections of a server."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._addresses = media_addresses(settings.host)
        self._peers: dict[str, Peer] = {}
        self._endings: set[asyncio.Task[None]] = set()

    async def accept(self, session: Session, offer: str) -> tuple[Peer, str]:
        """Answer an offer. Raises Refused for one that cannot be answered."""
        offer = without_mdns(offer)
        description = parse_offer(offer)
        peer = Peer(self, session)
        self._peers[peer.id] = peer
        peer.offer, peer.candidates = description, _candidates(description)
        try:
            answer = await self._negotiate(peer, offer, description)
        except Exception as error:
            peer.close(CLOSE_NORMAL, "the offer could not be answered")
            if isinstance(error, Refused):
                raise
            log.info("offer refused: %r", error)
            raise Refused(422, "invalid_sdp", "the offer cannot be answered") from error
        return peer, answer

    def find(self, session: Session, peer_id: str) -> Peer:
        """One of the session's peers. Raises Refused."""
        peer = self._peers.get(peer_id)
        if peer is None or peer.session is not session:
            raise Refused(404, "not_found", "the session has no such peer")
        return peer

    def end(self, session: Session, peer_id: str) -> None:
        """End one of the session's peers, if it is still there."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.session is session:
            peer.close(CLOSE_NORMAL, "ended by the client")

    async def trickle(self, peer: Peer, fragment: str) -> None:
        """Add the candidates of an SDP fragment. Raises Refused; an ICE restart is one of the reasons."""
        assert peer.offer is not None
        ufrags = {media.ice.usernameFragment for media in peer.offer.media if media.ice}
        mids = [media.rtp.muxId for media in peer.offer.media]
        mid = mids[0]
        for line in fragment.splitlines():
            name, _, value = line.strip().removeprefix("a=").partition(":")
            if name == "ice-ufrag" and value not in ufrags:
                raise Refused(422, "ice_restart", "an ICE restart is not done here: post a new offer")
            if name == "mid":
                if value not in mids:
                    raise Refused(422, "invalid_fragment", "the fragment names a media section that the offer has not")
                mid = value
            elif name == "candidate" and ".local " not in value:
                await self._add(peer, value, mid)

    async def close(self) -> None:
        """End all of them and wait for it."""
        for peer in list(self._peers.values()):
            peer.close(CLOSE_NORMAL, "the server stops")
        if self._endings:
            await asyncio.wait(self._endings, timeout=5)

    def ended(self, peer: Peer) -> None:
        """The peer is over: close its connection in the background."""
        self._peers.pop(peer.id, None)
        task = asyncio.create_task(self._end(peer))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    @staticmethod
    async def _end(peer: Peer) -> None:
        # What the viewer was told last is still on its way.
        await asyncio.sleep(_FAREWELL_S)
        try:
            await peer.connection.close()
        except Exception:
            # The peer is forgotten already; nobody else may suffer from how aiortc ends it.
            log.exception("peer %s could not be closed", peer.id)
        peer.release()

    async def _negotiate(self, peer: Peer, offer: str, description: SessionDescription) -> str:
        connection = peer.connection
        peer.has_control = any(media.kind == "application" for media in description.media)
        stream, video = peer.session.stream, None
        if any(media.kind == "video" for media in description.media):
            peer.track = MailboxTrack(peer.viewer.mailbox, peer.taken, peer.sent, peer.viewer.acknowledge)
            video = connection.addTransceiver(peer.track, "sendonly")
        sound = None
        if stream.voice is not None and any(media.kind == "audio" for media in description.media):
            sound = connection.addTransceiver(SoundTrack(peer.viewer.listen(), stream), "sendrecv")
            connection.on("track", peer.hear)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        except OperationError as error:
            raise Refused(
                422,
                "no_common_codec",
                "the offer has a media section without any codec that the server speaks: for video these are VP8 and "
                "H.264 (constrained baseline, packetization-mode=1)",
            ) from error
        for transceiver in connection.getTransceivers():
            if transceiver not in (video, sound):
                transceiver.direction = "inactive"
        choose_addresses(connection, self._addresses, self.settings.media_ip)
        answer = await connection.createAnswer()
        zero_ntp = ntp_of_clock(stream.clock, time.monotonic())
        if video is not None and peer.track is not None:
            # The codec that the client offered first, of those that both know.
            accepted = SessionDescription.parse(answer.sdp).media
            codec = next(media.rtp.codecs[0] for media in accepted if media.kind == "video")
            encoder = RtpEncoder(encoder_for(stream, CODECS[codec.name], self.settings.upscale), codec)
            peer.track.tap = SenderTap(video.sender, encoder)
            EpochSender.adopt(video.sender, encoder, zero_ntp)
        if sound is not None:
            opus = OpusEncoder()
            EpochSender.adopt(sound.sender, opus, zero_ntp)
            InOrder.adopt(sound.receiver)
        await connection.setLocalDescription(answer)
        return connection.localDescription.sdp

    async def _add(self, peer: Peer, text: str, mid: str) -> None:
        if peer.candidates >= _MOST_CANDIDATES:
            message = f"the peer has {_MOST_CANDIDATES} candidates, as many as it may: post a new offer"
            raise Refused(422, "too_many_candidates", message)
        try:
            candidate = candidate_from_sdp(text)
            if not _usable(candidate):
                raise ValueError(f"port {candidate.port}")
            candidate.sdpMid = mid
            await peer.connection.addIceCandidate(candidate)
        except (ValueError, IndexError, AssertionError) as error:
            raise Refused(422, "invalid_fragment", "the fragment has a candidate that cannot be read") from error
        peer.candidates += 1


def parse_offer(offer: str) -> SessionDescription:
    """An offer that can be answered, as far as its text shows. Raises Refused."""
    try:
        description = SessionDescription.parse(offer)
    except Exception as error:  # aiortc's parser raises whatever the text makes it stumble over
        raise Refused(422, "invalid_sdp", "the offer is not a session description") from error
    kinds = [media.kind for media in description.media]
    if not set(kinds) & {"video", "application"}:
        raise Refused(422, "invalid_sdp", "the offer has neither video nor a data channel")
    if len(kinds) > _MOST_MEDIA_SECTIONS or not set(kinds) <= {"audio", "video", "application"}:
        raise Refused(422, "invalid_sdp", f"the offer has media sections {', '.join(kinds)[:80]}; that is too much")
    # What follows aiortc takes as it comes and stumbles over later, in tasks of its own, or half way through.
    for media in description.media:
        ice = media.ice
        if not (ice and _UFRAG.fullmatch(ice.usernameFragment or "") and _PASSWORD.fullmatch(ice.password or "")):
            raise Refused(422, "invalid_sdp", "the offer lacks ICE parameters, or they are not those of RFC 8839")
        if not (media.dtls and media.dtls.fingerprints):
            raise Refused(422, "invalid_sdp", "the offer lacks DTLS fingerprints")
        if media.kind == "application" and not (_is_port(media.sctp_port) or _is_port(media.fmt[0])):
            raise Refused(422, "invalid_sdp", "the offer's data channel lacks an SCTP port")
        if not all(map(_usable, media.ice_candidates)):
            raise Refused(422, "invalid_sdp", "the offer has a candidate that cannot be read")
    mids = [media.rtp.muxId or "" for media in description.media]
    groups = [sorted(map(str, group.items)) for group in description.group if group.semantic == "BUNDLE"]
    together = groups == [sorted(mids)] or (not groups and len(mids) == 1)
    if len(set(mids)) < len(mids) or not together:
        raise Refused(422, "invalid_sdp", "the offer's sections need names of their own, all in one BUNDLE group")
    if _candidates(description) > _MOST_CANDIDATES:
        raise Refused(422, "too_many_candidates", f"the offer has more than {_MOST_CANDIDATES} candidates")
    return description


def _candidates(description: SessionDescription) -> int:
    return sum(len(media.ice_candidates) for media in description.media)


def _is_port(value: object) -> bool:
    return str(value).isdecimal() and 0 < int(str(value)) <= _LAST_PORT


def _usable(candidate: RTCIceCandidate) -> bool:
    """aioice leaves out addresses that are none, but not ports."""
    return 0 <= candidate.port <= _LAST_PORT


def ice_links(settings: Settings) -> list[str]:
    """Values of Link headers that name the ICE servers (RFC 9725, section 4.6)."""
    links = []
    for server in settings.ice_server:
        link = f'<{server.url}>; rel="ice-server"'
        if server.username is not None and server.credential is not None:
            username, credential = (re.sub(r'(["\\])', r"\\\1", text) for text in (server.username, server.credential))
            link += f'; username="{username}"; credential="{credential}"; credential-type="password"'
        links.append(link)
    return links
