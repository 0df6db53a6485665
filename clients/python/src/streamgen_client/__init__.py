"""Watch and steer the generated video of a streamgen server. Start with `StreamClient`."""

from streamgen_client.client import StreamClient
from streamgen_client.errors import (
    BadAddress,
    ClientError,
    ServerUnreachable,
    SessionRefused,
    StreamLost,
    TransportFailed,
    UnknownKey,
)
from streamgen_client.frames import Frame
from streamgen_client.inputs import Acknowledgement
from streamgen_client.session import Student, read_student
from streamgen_client.stats import Stats

__all__ = [
    "Acknowledgement",
    "BadAddress",
    "ClientError",
    "Frame",
    "ServerUnreachable",
    "SessionRefused",
    "Stats",
    "StreamClient",
    "StreamLost",
    "Student",
    "TransportFailed",
    "UnknownKey",
    "read_student",
]
