"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from server.errors import install_error_handlers
from server.http import router
from server.metrics import Metrics
from server.pages import web_folder
from server.security import Gatekeeper, allowed_hosts
from server.service import Service
from server.settings import Settings
from server.students import Offer


def create_app(settings: Settings, offers: Sequence[Offer], web: Path | None = None) -> ASGIApp:
    """The server of some students, of which the first is for sessions that name none.

    web: folder of the page; None takes the installed one. Its lifespan state holds the `service`.
    """

    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        service = Service(settings, offers, web or web_folder(), metrics)
        async with service.running():
            yield {"service": service}

    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(title="streamgen", lifespan=lifespan, docs_url=None, redoc_url=None)
    install_error_handlers(app, metrics)
    app.include_router(router)
    hosts = allowed_hosts(settings.host, settings.media_ip, settings.allow_host)

    def max_body_bytes(path: str) -> int:
        if path == "/v1/sessions":
            return settings.max_body_bytes + settings.max_picture_bytes
        return settings.max_sound_bytes if path.endswith("/sound") else settings.max_body_bytes

    return Gatekeeper(app, hosts, settings.allow_origin, max_body_bytes, metrics)
