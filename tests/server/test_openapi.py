"""The OpenAPI document says what the server does: requests made from it, answers held against it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.http import SDP, SDP_FRAGMENT
from tests.server.harness import LiveServer, Ticket

EXAMPLES = 8
CONFORMS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@schemathesis.serializer(SDP, SDP_FRAGMENT)
def text(_: object, value: object) -> bytes:
    return str(value).encode(errors="replace")


@pytest.mark.parametrize("owner", [False, True])
def test_every_route_answers_as_documented(shared: LiveServer, owner: bool) -> None:
    """As a stranger, and as the owner of a session. That there is no room now is no error of the server."""
    statuses: Counter[int] = Counter()
    before = set(shared.service.sessions._sessions)
    with requests.Session() as connection:
        for result in schemathesis.openapi.from_url(shared.url + "/openapi.json").get_all_operations():
            ticket = shared.create()
            statuses += _answers(result.ok(), ticket if owner else None, connection)
            for session_id in set(shared.service.sessions._sessions) - before:
                session = shared.service.sessions._sessions[session_id]
                shared.loop.call_soon_threadsafe(shared.service.sessions.free, session, "done", "done")
    assert {200, 201} | ({204, 422} if owner else {401}) <= set(statuses), statuses


def _answers(operation: Any, ticket: Ticket | None, connection: requests.Session) -> Counter[int]:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def check(case: Case) -> None:
        if ticket is not None and "session_id" in case.path_parameters:
            case.path_parameters["session_id"] = ticket.id
            case.headers["Authorization"] = f"Bearer {ticket.token}"
        response = case.call(session=connection)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CONFORMS + [not_a_server_error] * (response.status_code != 503))

    check()
    return statuses
