"""What an operator can set. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server. url: RFC 7064 or 7065; username and credential belong to TURN."""

    url: str
    username: str | None = None
    credential: str | None = None

    @classmethod
    def parse(cls, text: str) -> IceServer:
        """Read `URL` or `URL,USERNAME,CREDENTIAL`. Raises ValueError."""
        parts = text.split(",", 2)
        if not parts[0].startswith(("stun:", "stuns:", "turn:", "turns:")):
            raise ValueError(f"ICE server {parts[0]!r}: its URL starts with stun:, stuns:, turn: or turns:")
        if len(parts) == 2:
            raise ValueError(f"ICE server {parts[0]!r}: give URL, or URL,USERNAME,CREDENTIAL")
        return cls(*parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server's limits and addresses.

    host: the address that HTTP is bound to; ICE candidates and the allow-list of hosts follow it.
    media_ip: advertised in ICE candidates in place of the bound address (behind a one-to-one NAT).
    upscale: integer factor between the student's pixels and WebRTC video; None picks one from the height.
    """

    host: str = "127.0.0.1"
    media_ip: str | None = None
    ice_servers: tuple[IceServer, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    upscale: int | None = None

    max_sessions: int = 8
    max_viewers: int = 4
    max_body_bytes: int = 64 * 1024
    max_message_bytes: int = 4096
    messages_per_s: float = 120.0
    message_burst: float = 240.0

    away_after_s: float = 3.0
    return_within_s: float = 30.0
    session_lifetime_s: float = 12 * 3600.0
    hello_within_s: float = 5.0
    connect_within_s: float = 15.0

    hang_after_s: float = 10.0
    ready_within_s: float = 600.0
