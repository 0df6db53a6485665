"""API keys, by themselves and on a real server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from server.errors import Refused
from server.keys import ApiKey, Keyring, key
from tests.server.harness import LiveServer, bearer
from tests.server.synthetic import make_student
from tests.server.viewers import SocketClient, follow

ONE, TWO = "sg_one", "sg_two"


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def known(secret: str) -> ApiKey:
    return ApiKey.parse(hashed(secret))


def refusal(keyring: Keyring, given: str | None, address: str, now_s: float = 0.0) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        keyring.check(given, address, now_s)
    return refused.value.status, refused.value.code


def test_the_command_makes_a_key_that_its_hash_lets_in() -> None:
    outputs = [CliRunner().invoke(key, arguments).output for arguments in ([], ["--sessions", "5"])]
    secrets = []
    for output, sessions in zip(outputs, (None, 5), strict=True):
        lines = dict(line.split() for line in output.splitlines())
        parsed = ApiKey.parse(lines["hash"])
        assert parsed.sessions == sessions
        assert Keyring([parsed]).check(lines["key"], "192.0.2.1", 0.0) == parsed
        secrets.append(lines["key"])
    assert len(set(secrets)) == 2 and all(len(secret) >= 43 for secret in secrets)


def test_the_right_key_is_found_among_several() -> None:
    keyring = Keyring([known(ONE), known(TWO)])
    assert keyring.check(TWO, "192.0.2.1", 0.0) == known(TWO)
    assert refusal(keyring, None, "192.0.2.1") == (401, "key_needed")
    assert refusal(keyring, "", "192.0.2.1") == (401, "key_needed")
    # The hash is no key: who reads the configuration cannot open sessions.
    for wrong in ("sg_three", known(ONE).digest.hex(), hashed(ONE), "schlüssel"):
        assert refusal(keyring, wrong, "192.0.2.1") == (401, "key_unknown")
    assert Keyring([]).check(None, "192.0.2.1", 0.0) is None


def test_guesses_are_slowed_down_for_the_address_they_come_from() -> None:
    keyring = Keyring([known(ONE)])
    codes = [refusal(keyring, f"guess {n}", "192.0.2.1")[1] for n in range(12)]
    assert codes == ["key_unknown"] * 10 + ["too_many_wrong_keys"] * 2
    assert refusal(keyring, ONE, "192.0.2.1", 5.0) == (429, "too_many_wrong_keys")
    assert keyring.check(ONE, "192.0.2.2", 5.0)
    assert keyring.check(ONE, "192.0.2.1", 7.0)
    assert refusal(keyring, "guess", "192.0.2.1", 7.0)[1] == "key_unknown"
    assert refusal(keyring, "guess", "192.0.2.1", 7.0)[1] == "too_many_wrong_keys"


def test_who_gives_no_key_or_a_right_one_loses_no_try() -> None:
    keyring = Keyring([known(ONE)])
    for _ in range(100):
        assert refusal(keyring, None, "192.0.2.1") == (401, "key_needed")
        assert keyring.check(ONE, "192.0.2.1", 0.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    keyring = Keyring([known(ONE)])
    while refusal(keyring, "guess", one)[1] != "too_many_wrong_keys":
        pass
    if same:
        assert refusal(keyring, ONE, other) == (429, "too_many_wrong_keys")
    else:
        assert keyring.check(ONE, other, 0.0)


def test_addresses_are_forgotten_before_they_fill_the_memory() -> None:
    keyring = Keyring([known(ONE)])
    for n in range(5000):
        refusal(keyring, "guess", f"10.0.{n // 256}.{n % 256}")
    assert len(keyring._guesses) == 4096


async def test_sessions_are_for_who_has_a_key(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    # Few frames a second: a busy machine shall have room for four streams.
    calm = make_student(tmp_path / "calm", fps=4.0)
    server = serve(own=calm, settings={"api_key": (hashed(ONE), hashed(TWO) + ",1"), "max_sessions_per_key": 2})
    playing = server.create(seed=31, key=ONE)
    async with SocketClient(playing) as client:
        await client.watch(3)

        def post(secret: str | None, **options: object) -> tuple[int, str | None]:
            answer = server.post("/v1/sessions", headers=bearer(secret), **options)
            if answer.status_code == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            return answer.status_code, answer.json().get("error", {}).get("code")

        assert await asyncio.to_thread(post, None) == (401, "key_needed")
        assert await asyncio.to_thread(post, "sg_three") == (401, "key_unknown")
        assert await asyncio.to_thread(post, playing.token) == (401, "key_unknown")
        # A key is no right to somebody's session.
        answer = await asyncio.to_thread(server.get, f"/v1/sessions/{playing.id}", headers=bearer(ONE))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        # Each key has places of its own, and they come back.
        second = await asyncio.to_thread(server.create, 1, ONE)
        assert await asyncio.to_thread(post, ONE) == (429, "key_full")
        third = await asyncio.to_thread(server.create, 1, TWO)
        assert await asyncio.to_thread(post, TWO) == (429, "key_full")
        for ticket in (second, third):
            await asyncio.to_thread(ticket.call, "DELETE")
        await asyncio.to_thread(server.create, 1, TWO)
        # Guessing from one address: refused there after a while, and nobody elsewhere notices.
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as stranger:
            codes = []
            while codes.count(429) < 3:
                answer = await asyncio.to_thread(
                    stranger.post, server.url + "/v1/sessions", headers=bearer(f"guess {len(codes)}")
                )
                codes.append(answer.status_code)
                assert len(codes) < 300, "guesses are not slowed down"
            assert int(answer.headers["Retry-After"]) > 0
        assert codes[:10] == [401] * 10
        await asyncio.to_thread(server.create, 1, ONE)
        await client.watch(5)
    follow(31, client.frames)
    assert server.metric("streamgen_requests_refused_total", code="key_needed") == 1
    assert server.metric("streamgen_requests_refused_total", code="key_unknown") == 2 + codes.count(401)
    assert server.metric("streamgen_requests_refused_total", code="too_many_wrong_keys") == 3
    assert server.metric("streamgen_sessions_refused_total", reason="key_full") == 2
