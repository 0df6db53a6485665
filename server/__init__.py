"""Puts streams on the wire: sessions, schedule, media clock, WebRTC and WebSocket."""
