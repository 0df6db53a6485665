"""The HTTP interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server import protocol
from server.agents import AGENT_HZ, serve_agent
from server.errors import ErrorAnswer, Refused
from server.keys import ApiKey
from server.pages import MEDIA_TYPES
from server.security import client_address
from server.service import Service
from server.session import Session
from server.students import StudentState
from server.webrtc import Peer, ice_links
from server.websocket import serve_socket
from streamgen.config import StudentConfig
from streamgen.noise import SEED_LIMIT

SDP = "application/sdp"
SDP_FRAGMENT = "application/trickle-ice-sdpfrag"

Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSession(_Body):
    """What a client may ask for; the server chooses the rest."""

    student: str | None = Field(default=None, description="one of /v1/students; the first of them if not given")
    seed: Seed | None = None
    identity: str | None = Field(
        default=None, max_length=64, description="who an avatar is, of the student's; the first of them if not given"
    )
    reference: str | None = Field(
        default=None, description="a picture of whom it is to be instead: PNG, JPEG or WebP, in base64"
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.identity is not None and self.reference is not None:
            raise ValueError("an identity and a reference: give one of them")
        return self


class Reset(_Body):
    """Begin the stream anew from this seed."""

    seed: Seed


class Words(_Body):
    text: str = Field(min_length=1, max_length=protocol.MOST_TEXT)


class Queued(BaseModel):
    """seconds: of sound that was added to what is to be said."""

    seconds: float


class StudentInfo(BaseModel):
    name: str
    fps: float
    width: int
    height: int
    keys: list[str]
    identities: list[str] = Field(description="who it can be, if there is anybody to choose")
    reference: bool = Field(description="whether it can be whoever a picture shows")
    speech: bool = Field(description="whether it is driven by sound instead of keys")

    @classmethod
    def of(cls, config: StudentConfig) -> StudentInfo:
        return cls(
            name=config.name,
            fps=config.fps,
            width=config.width,
            height=config.height,
            keys=list(config.keys),
            identities=list(config.identities),
            reference=config.likeness is not None,
            speech=config.speech is not None,
        )


class ListedStudent(StudentInfo):
    """A student that sessions can be opened for, and its worker: an unloaded one is started by the first session that
    asks, which is told to come back in a moment.
    """

    state: StudentState


class StudentList(BaseModel):
    """The first is for sessions that name none."""

    students: list[ListedStudent]


class Readiness(BaseModel):
    """Of the default student. step_ms: measured, by step count. students: state of each."""

    status: Literal["ready"] = "ready"
    student: str
    engine: str
    precision: str
    device: str
    step_ms: dict[str, float]
    students: dict[str, StudentState]


class SessionInfo(BaseModel):
    """A session as its bearer sees it."""

    id: str
    state: Literal["playing", "paused", "away"]
    expires_at: str
    student: StudentInfo
    seed: int
    frame: int
    generation: int
    viewers: int
    fps: float
    links: dict[str, str]
    ice_servers: list[dict[str, str]] = Field(description="RTCIceServer dictionaries, as browsers take them")


class CreatedSession(SessionInfo):
    token: str


def _service(request: Request) -> Service:
    service: Service = request.state.service
    return service


_TOKEN = HTTPBearer(scheme_name="token", description="of the session, from POST /v1/sessions", auto_error=False)
_API_KEY = HTTPBearer(scheme_name="API key", description="where the server asks for one", auto_error=False)

Running = Annotated[Service, Depends(_service)]


def _session(
    service: Running,
    request: Request,
    session_id: str,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_TOKEN)],
) -> Session:
    if given is None:
        raise Refused(401, "unauthorized", "the session's token is missing: Authorization: Bearer TOKEN")
    return service.sessions.find(session_id, given.credentials, client_address(request))


def _key(
    service: Running, request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_API_KEY)]
) -> ApiKey | None:
    return service.keyring.check(given.credentials if given else None, client_address(request), service.now_s())


Owned = Annotated[Session, Depends(_session)]
Keyed = Annotated[ApiKey | None, Depends(_key)]

router = APIRouter(responses={"default": {"model": ErrorAnswer, "description": "Refused"}})

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "`unauthorized`: no such session, or not its token"},
    429: {"model": ErrorAnswer, "description": "With Retry-After: `too_many_wrong_tokens`"},
    503: {"model": ErrorAnswer, "description": "With Retry-After: `draining`: the server restarts; `starting`"},
}
"""Of everything that is done with a session."""

_UNSAID: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "`no_voice`: the student is driven by keys"},
    413: {"model": ErrorAnswer, "description": "`body_too_large`"},
    422: {"model": ErrorAnswer, "description": "`unspeakable`, `invalid_request`"},
    501: {"model": ErrorAnswer, "description": "`no_speech`: the server has no voice for text"},
    503: {"model": ErrorAnswer, "description": "With Retry-After: `voice_full`, `draining`, `starting`"},
}

_NOT_NOW = (
    "With Retry-After: `starting`: the student is being loaded; `no_memory`: it has no room beside those that play; "
    "`full`: one more stream would starve the others; `draining`: the server restarts"
)


def _takes(media_type: str) -> dict[str, Any]:
    """The OpenAPI document's words for a body that FastAPI does not read itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": {"type": "string"}}}}}


def _info(session: Session, service: Service) -> dict[str, Any]:
    base = f"/v1/sessions/{session.id}"
    return {
        "id": session.id,
        "state": session.state,
        "expires_at": session.expires_at.isoformat(),
        "student": StudentInfo.of(session.stream.student.config),
        "seed": session.seed,
        "frame": session.stream.state.frame,
        "generation": session.stream.generation,
        "viewers": len(session.viewers),
        "fps": session.stream.measured_fps(service.now_s()),
        "links": {"self": base, "webrtc": f"{base}/webrtc", "stream": f"{base}/stream", "log": f"{base}/log"},
        "ice_servers": [server.for_browser() for server in service.settings.ice_server],
    }


@router.post(
    "/v1/sessions",
    status_code=201,
    responses={
        401: {"model": ErrorAnswer, "description": "`key_needed`, `key_unknown`"},
        404: {"model": ErrorAnswer, "description": "`unknown_student`, `unknown_identity`"},
        422: {"model": ErrorAnswer, "description": "`invalid_request`, `unfit_reference`"},
        429: {
            "model": ErrorAnswer,
            "description": "With Retry-After: `key_full`, `too_many_wrong_keys`, `too_many_pictures`",
        },
        503: {"model": ErrorAnswer, "description": _NOT_NOW},
    },
)
async def create_session(
    request: Request,
    service: Running,
    key: Keyed,
    response: Response,
    wish: Annotated[NewSession | None, Body()] = None,
) -> CreatedSession:
    """Open a session: the right to a stream, which begins when a viewer comes. It is told its token once."""
    wish = wish or NewSession()
    reference = None
    if wish.reference is not None:
        student = service.students.find(wish.student).student
        if student.config.likeness is None:
            raise Refused(422, "unfit_reference", f"student {student.config.name} cannot be whoever a picture shows")
        service.sessions.admit(wish.student, key)  # before anything is computed
        reference = await service.likenesses.read(student, wish.reference, client_address(request), service.now_s())
    session, token = service.sessions.create(wish.student, wish.seed, key, wish.identity, reference)
    response.headers["Location"] = f"/v1/sessions/{session.id}"
    return CreatedSession(token=token, **_info(session, service))


@router.get("/v1/sessions/{session_id}", responses=_REFUSALS)
async def read_session(service: Running, session: Owned) -> SessionInfo:
    """What the session is doing. Asking does not count as watching."""
    return SessionInfo(**_info(session, service))


@router.delete("/v1/sessions/{session_id}", status_code=204, responses=_REFUSALS)
async def delete_session(service: Running, session: Owned) -> None:
    """End the session; its viewers are told and closed."""
    service.sessions.free(session, "session_deleted", "the session was deleted")


@router.post("/v1/sessions/{session_id}/reset", responses=_REFUSALS)
async def reset_session(service: Running, session: Owned, reset: Reset) -> SessionInfo:
    """Begin the stream anew from this seed, in a new generation; nothing of the old one is shown any more."""
    session.reset(reset.seed)
    return SessionInfo(**_info(session, service))


@router.post("/v1/sessions/{session_id}/pause", responses=_REFUSALS)
async def pause_session(service: Running, session: Owned) -> SessionInfo:
    """Stop generating, for every viewer of the session, until one of them or this interface resumes it."""
    session.pause()
    return SessionInfo(**_info(session, service))


@router.post("/v1/sessions/{session_id}/resume", responses=_REFUSALS)
async def resume_session(service: Running, session: Owned) -> SessionInfo:
    """Go on generating where it was paused."""
    session.resume()
    return SessionInfo(**_info(session, service))


@router.post("/v1/sessions/{session_id}/say", status_code=202, responses={**_REFUSALS, **_UNSAID})
async def say(service: Running, session: Owned, words: Words) -> Queued:
    """Let an avatar say a text, after all that it still has to say."""
    return Queued(seconds=await service.speaking.say(session.stream, words.text, session.stream.utterance))


@router.post(
    "/v1/sessions/{session_id}/sound",
    status_code=202,
    responses={**_REFUSALS, **_UNSAID},
    openapi_extra=_takes("application/octet-stream"),
)
async def play_sound(service: Running, session: Owned, request: Request) -> Queued:
    """Let an avatar say a file's sound at its own pace, after all that it still has to say. It is not kept."""
    return Queued(seconds=await service.speaking.play(session.stream, await request.body()))


@router.post("/v1/sessions/{session_id}/interrupt", responses=_REFUSALS)
async def interrupt_session(service: Running, session: Owned) -> SessionInfo:
    """Let an avatar fall silent at once, and forget what it still had to say."""
    session.interrupt()
    return SessionInfo(**_info(session, service))


@router.get(
    "/v1/sessions/{session_id}/log",
    response_class=Response,
    responses={**_REFUSALS, 200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
async def read_log(session: Owned) -> StreamingResponse:
    """What determined the session's frames since it began, or was taken up by this server, as JSON Lines: `streamgen
    replay` makes them again.
    """
    name = f"{session.stream.student.config.name}-{session.id}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    parts = session.log()

    async def sent() -> AsyncIterator[bytes]:
        # On the event loop, which also writes the log; the server waits for the network between two pieces.
        for part in parts:
            yield part

    return StreamingResponse(sent(), media_type="application/jsonl", headers=headers)


@router.options("/v1/sessions/{session_id}/webrtc", status_code=204)
async def webrtc_options(response: Response) -> None:
    """`Accept-Post` names the media type of offers."""
    response.headers["Accept-Post"] = SDP


@router.post(
    "/v1/sessions/{session_id}/webrtc",
    status_code=201,
    response_class=Response,
    responses={**_REFUSALS, 201: {"description": "The SDP answer", "content": {SDP: {"schema": {"type": "string"}}}}},
    openapi_extra=_takes(SDP),
)
async def offer_webrtc(request: Request, service: Running, session: Owned) -> Response:
    """WebRTC, in the manner of WHEP. Body: an SDP offer (`application/sdp`); the answer is one too.

    `Location` is the new peer, `ETag` its ICE session, each `Link` with `rel="ice-server"` a STUN or TURN server.
    """
    peer, answer = await service.peers.accept(session, await _text(request, SDP))
    response = Response(answer, 201, media_type=SDP)
    response.headers["Location"] = f"/v1/sessions/{session.id}/webrtc/{peer.id}"
    response.headers["ETag"] = peer.etag
    response.headers["Accept-Patch"] = SDP_FRAGMENT
    for link in ice_links(service.settings):
        response.headers.append("Link", link)
    return response


def _peer(service: Running, session: Owned, peer_id: str) -> Peer:
    return service.peers.find(session, peer_id)


@router.patch(
    "/v1/sessions/{session_id}/webrtc/{peer_id}",
    status_code=204,
    responses=_REFUSALS,
    openapi_extra=_takes(SDP_FRAGMENT),
)
async def trickle_webrtc(
    request: Request,
    service: Running,
    peer: Annotated[Peer, Depends(_peer)],
    if_match: Annotated[str | None, Header()] = None,
) -> None:
    """Trickle ICE. Body: candidates (`application/trickle-ice-sdpfrag`, RFC 8840); `If-Match`: the ETag."""
    if if_match not in (None, "*", peer.etag):
        raise Refused(412, "wrong_etag", "the ETag is not that of this ICE session")
    await service.peers.trickle(peer, await _text(request, SDP_FRAGMENT))


@router.delete("/v1/sessions/{session_id}/webrtc/{peer_id}", status_code=204, responses=_REFUSALS)
async def end_webrtc(service: Running, session: Owned, peer_id: str) -> None:
    """End the peer; the session goes on. No error where it has ended already, as one whose link was lost."""
    service.peers.end(session, peer_id)


@router.websocket("/v1/sessions/{session_id}/stream")
async def stream(socket: WebSocket, session_id: str) -> None:
    service: Service = socket.state.service
    await serve_socket(socket, session_id, service.sessions, service.settings, service.metrics, service.pool)


@router.websocket("/v1/sessions/{session_id}/agent")
async def agent(
    socket: WebSocket,
    session_id: str,
    rate: Annotated[int, Query(ge=8_000, le=48_000)] = AGENT_HZ,
    authorization: Annotated[str, Header()] = "",
) -> None:
    service: Service = socket.state.service
    token = authorization.removeprefix("Bearer ")
    await serve_agent(socket, session_id, token, rate, service.sessions, service.settings, service.metrics)


@router.get("/v1/students")
async def list_students(service: Running) -> StudentList:
    """What this server generates."""
    return StudentList(
        students=[
            ListedStudent(**StudentInfo.of(served.student.config).model_dump(), state=served.state)
            for served in service.students.all
        ]
    )


@router.get("/v1/schema")
async def read_schema() -> dict[str, Any]:
    """JSON schema of the control messages, and the layout of binary ones."""
    return protocol.schema()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ErrorAnswer, "description": "`starting`, `draining`"}})
async def readyz(service: Running) -> Readiness:
    """Whether a stream of the default student can be generated now."""
    service.sessions.refuse_while_draining()
    info = service.students.ready(service.students.default).info
    assert info is not None
    return Readiness(
        student=service.students.default.name,
        engine=info.engine,
        precision=info.precision,
        device=info.device,
        step_ms={str(steps): round(cost_s * 1e3, 2) for steps, cost_s in info.cost_s.items()},
        students={served.name: served.state for served in service.students.all},
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "For Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: Running) -> Response:
    """For Prometheus."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/{path:path}", include_in_schema=False)
async def page(service: Running, path: str) -> FileResponse:
    file = service.pages.get(path)
    if file is None:
        raise Refused(404, "not_found", "there is nothing under this address")
    return FileResponse(file, media_type=MEDIA_TYPES[file.suffix])


async def _text(request: Request, media_type: str) -> str:
    """The body, if it says that it is what is expected. Raises Refused."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise Refused(415, "unsupported_media_type", f"the body must be {media_type}")
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise Refused(400, "invalid_request", "the body is not UTF-8") from None
