"""Watch and steer the generated video of a streamgen server. Start with `StreamClient`."""

from streamgen_client.client import StreamClient
from streamgen_client.errors import (
    BadAddress,
    ClientError,
    ServerUnreachable,
    SessionRefused,
    Silent,
    StreamLost,
    TransportFailed,
    UnknownKey,
)
from streamgen_client.frames import SOUND_RATE, Frame, Sound
from streamgen_client.inputs import Acknowledgement
from streamgen_client.session import Student, read_student
from streamgen_client.stats import Stats

__all__ = [
    "SOUND_RATE",
    "Acknowledgement",
    "BadAddress",
    "ClientError",
    "Frame",
    "ServerUnreachable",
    "SessionRefused",
    "Silent",
    "Sound",
    "Stats",
    "StreamClient",
    "StreamLost",
    "Student",
    "TransportFailed",
    "UnknownKey",
    "read_student",
]
