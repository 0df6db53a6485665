"""The HTTP interface."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from server import protocol
from server.errors import ERROR_RESPONSES, Refused
from server.keys import ApiKey
from server.pages import MEDIA_TYPES
from server.security import client_address
from server.service import Service
from server.sessions import Session
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

    student: str | None = None
    seed: Seed | None = None


class Reset(_Body):
    """Begin the stream anew from this seed."""

    seed: Seed


class StudentInfo(BaseModel):
    name: str
    fps: float
    width: int
    height: int
    keys: list[str]

    @classmethod
    def of(cls, config: StudentConfig) -> StudentInfo:
        return cls(name=config.name, fps=config.fps, width=config.width, height=config.height, keys=list(config.keys))


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
    service: Service = request.app.state.service
    return service


def _bearer(authorization: Annotated[str, Header(description="Bearer SECRET")] = "") -> str | None:
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


Served = Annotated[Service, Depends(_service)]
Bearer = Annotated[str | None, Depends(_bearer)]


def _session(service: Served, request: Request, session_id: str, token: Bearer) -> Session:
    if token is None:
        raise Refused(401, "unauthorized", "the session's token is missing: Authorization: Bearer TOKEN")
    return service.sessions.find(session_id, token, client_address(request))


def _key(service: Served, request: Request, given: Bearer) -> ApiKey | None:
    return service.keyring.check(given, client_address(request), service.now_s())


Owned = Annotated[Session, Depends(_session)]
Keyed = Annotated[ApiKey | None, Depends(_key)]

router = APIRouter(responses=ERROR_RESPONSES)


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
        "links": {"self": base, "webrtc": f"{base}/webrtc", "stream": f"{base}/stream"},
        "ice_servers": [server.for_browser() for server in service.settings.ice_server],
    }


@router.post("/v1/sessions", status_code=201)
async def create_session(
    service: Served, key: Keyed, response: Response, wish: Annotated[NewSession | None, Body()] = None
) -> CreatedSession:
    wish = wish or NewSession()
    if wish.student not in (None, service.student.config.name):
        raise Refused(
            404, "unknown_student", f"the server has no such student; it serves {service.student.config.name}"
        )
    session = service.sessions.create(wish.seed, key)
    response.headers["Location"] = f"/v1/sessions/{session.id}"
    return CreatedSession(token=session.token, **_info(session, service))


@router.get("/v1/sessions/{session_id}")
async def read_session(service: Served, session: Owned) -> SessionInfo:
    return SessionInfo(**_info(session, service))


@router.delete("/v1/sessions/{session_id}", status_code=204)
async def delete_session(service: Served, session: Owned) -> None:
    service.sessions.free(session, "session_deleted", "the session was deleted")


@router.post("/v1/sessions/{session_id}/reset")
async def reset_session(service: Served, session: Owned, reset: Reset) -> SessionInfo:
    session.reset(reset.seed)
    return SessionInfo(**_info(session, service))


@router.post("/v1/sessions/{session_id}/pause")
async def pause_session(service: Served, session: Owned) -> SessionInfo:
    session.pause()
    return SessionInfo(**_info(session, service))


@router.post("/v1/sessions/{session_id}/resume")
async def resume_session(service: Served, session: Owned) -> SessionInfo:
    session.resume()
    return SessionInfo(**_info(session, service))


@router.options("/v1/sessions/{session_id}/webrtc", status_code=204)
async def webrtc_options(response: Response) -> None:
    response.headers["Accept-Post"] = SDP


@router.post(
    "/v1/sessions/{session_id}/webrtc",
    status_code=201,
    response_class=Response,
    responses={201: {"description": "The SDP answer", "content": {SDP: {"schema": {"type": "string"}}}}},
    openapi_extra=_takes(SDP),
)
async def offer_webrtc(request: Request, service: Served, session: Owned) -> Response:
    peer, answer = await service.peers.accept(session, await _text(request, SDP))
    response = Response(answer, 201, media_type=SDP)
    response.headers["Location"] = f"/v1/sessions/{session.id}/webrtc/{peer.id}"
    response.headers["ETag"] = peer.etag
    response.headers["Accept-Patch"] = SDP_FRAGMENT
    for link in ice_links(service.settings):
        response.headers.append("Link", link)
    return response


def _peer(service: Served, session: Owned, peer_id: str) -> Peer:
    return service.peers.find(session, peer_id)


@router.patch("/v1/sessions/{session_id}/webrtc/{peer_id}", status_code=204, openapi_extra=_takes(SDP_FRAGMENT))
async def trickle_webrtc(
    request: Request,
    service: Served,
    peer: Annotated[Peer, Depends(_peer)],
    if_match: Annotated[str | None, Header()] = None,
) -> None:
    if if_match not in (None, "*", peer.etag):
        raise Refused(412, "wrong_etag", "the ETag is not that of this ICE session")
    await service.peers.trickle(peer, await _text(request, SDP_FRAGMENT))


@router.delete("/v1/sessions/{session_id}/webrtc/{peer_id}", status_code=204)
async def end_webrtc(peer: Annotated[Peer, Depends(_peer)]) -> None:
    peer.close(1000, "ended by the client")


@router.websocket("/v1/sessions/{session_id}/stream")
async def stream(socket: WebSocket, session_id: str) -> None:
    service: Service = socket.app.state.service
    await serve_socket(socket, session_id, service.sessions, service.settings, service.metrics, service.pool)


@router.get("/v1/students")
async def list_students(service: Served) -> dict[str, list[StudentInfo]]:
    return {"students": [StudentInfo.of(service.student.config)]}


@router.get("/v1/schema")
async def read_schema() -> dict[str, Any]:
    return protocol.schema()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(service: Served) -> JSONResponse:
    """Whether a stream can be generated now."""
    worker = service.scheduler.worker
    if not service.scheduler.ready:
        why = f": {worker.last_failure}" if worker.last_failure else ""
        raise Refused(503, "starting", f"the engine is not ready{why}", retry_after_s=2)
    info = service.scheduler.info
    assert info is not None
    return JSONResponse(
        {
            "status": "ready",
            "student": service.student.config.name,
            "engine": info.engine,
            "precision": info.precision,
            "device": info.device,
            "step_ms": {str(steps): round(cost_s * 1e3, 2) for steps, cost_s in info.cost_s.items()},
        }
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "For Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: Served) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/{path:path}", include_in_schema=False)
async def page(service: Served, path: str) -> FileResponse:
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
