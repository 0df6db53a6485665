"""Refusals as HTTP answers: {"error": {"code", "message", "retryable"}}, never with status 200."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from server.metrics import Metrics


class Refused(Exception):
    """A request that the server does not fulfil. retry_after_s: when another try may succeed."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s

    @property
    def retryable(self) -> bool:
        return self.retry_after_s is not None


class ErrorDetail(BaseModel):
    """`code` is for programs, `message` for people; retryable: the same request may succeed later."""

    code: str
    message: str
    retryable: bool


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused: the code says why"},
    "5XX": {"model": ErrorBody, "description": "Cannot be done now"},
}
"""For the OpenAPI document: what every route may answer."""


def error_body(code: str, message: str, retryable: bool = False) -> dict[str, Any]:
    """The body of an error, as JSON takes it."""
    return ErrorBody(error=ErrorDetail(code=code, message=message, retryable=retryable)).model_dump()


def install_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Give every error of the application the same form, and count it."""

    def answer(
        status: int, code: str, message: str, retryable: bool = False, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        metrics.requests_refused.labels(code).inc()
        return JSONResponse(error_body(code, message, retryable), status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return answer(error.status, error.code, error.message, error.retryable, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(422, "invalid_request", f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, f"http_{error.status_code}")
        return answer(error.status_code, code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "internal", "an internal error", retryable=True)
