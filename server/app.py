"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from server.errors import install_error_handlers
from server.http import router
from server.metrics import Metrics
from server.pages import web_folder
from server.security import Gatekeeper, allowed_hosts
from server.service import Service
from server.settings import Settings
from server.worker import BuildEngine
from streamgen.student import Student


def create_app(settings: Settings, student: Student, build_engine: BuildEngine, web: Path | None = None) -> ASGIApp:
    """The server of one student. build_engine is called in the worker process and must be picklable.

    web: folder of the page; None takes the installed one.
    """

    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, student, build_engine, web or web_folder(), metrics)
        app.state.service = service
        async with service.running():
            yield

    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(title="streamgen", lifespan=lifespan, docs_url=None, redoc_url=None)
    install_error_handlers(app, metrics)
    app.include_router(router)
    hosts = allowed_hosts(settings.host, settings.media_ip, settings.allow_host)
    return Gatekeeper(app, hosts, settings.allow_origin, settings.max_body_bytes, metrics)
