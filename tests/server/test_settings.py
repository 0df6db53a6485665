"""Where settings come from, and what is said about those that cannot be used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from engines.select import ENGINES
from server.settings import IceServer, PortRange, Settings, SettingsError, load_settings
from tests.server.harness import make_certificate

HASH = "sha256:" + hashlib.sha256(b"sg_one").hexdigest()
OTHER = "sha256:" + hashlib.sha256(b"sg_two").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serve.yaml"


def refusal(config: Path | None = None, **flags: Any) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load_settings(config, flags)
    return sorted(str(refused.value).splitlines())


def test_flag_over_environment_over_file_over_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port: 1\nmax_sessions: 1\nthreads: 1\nallow_host: [one.example]\n")
    monkeypatch.setenv("STREAMGEN_SERVE_PORT", "2")
    monkeypatch.setenv("STREAMGEN_SERVE_MAX_SESSIONS", "2")
    monkeypatch.setenv("STREAMGEN_SERVE_MEDIA_IP", "")  # an empty variable says nothing
    settings = load_settings(file, {"port": "3", "allow_host": ("three.example",)})
    assert (settings.port, settings.max_sessions, settings.threads, settings.max_viewers) == (3, 2, 1, 4)
    assert settings.allow_host == ("three.example",)  # replaced, not extended
    assert settings.media_ip is None


def test_every_form_of_value_in_every_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "student": ["world", "my-world"],
        "allow_host": ["a.example", "b.example"],
        "ice_server": ["stun:a.example", "turn:b.example:3478?transport=tcp,me,x,y"],
        "api_key": [HASH, f"{OTHER},3"],
        "media_ports": "50000-50100",
        "away_after_s": "1.5",
        "log_json": "true",
    }
    lines = [
        f"{name}: {value}" if isinstance(value, str) else "\n".join([f"{name}:", *(f"  - {text}" for text in value)])
        for name, value in texts.items()
    ]
    file.write_text("\n".join(lines))
    from_file = load_settings(file, {})
    from_flags = load_settings(None, texts)
    for name, value in texts.items():
        monkeypatch.setenv(f"STREAMGEN_SERVE_{name.upper()}", value if isinstance(value, str) else " ".join(value))
    assert load_settings(None, {}) == from_file == from_flags
    assert from_file.media_ports == PortRange(50000, 50100)
    assert from_file.ice_server[1] == IceServer("turn:b.example:3478?transport=tcp", "me", "x,y")
    assert [key.sessions for key in from_file.keys] == [None, 3]
    assert from_file.away_after_s == 1.5 and from_file.log_json


def test_a_mistake_is_told_once_with_its_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("_case_sensitive: x\nmax_sesions: 3\nmax_viewers: many\nport: wrong too, but the variable wins\n")
    monkeypatch.setenv("STREAMGEN_SERVE_PORT", "70000")
    monkeypatch.setenv("STREAMGEN_SERVE_ALOW_HOST", "x")
    monkeypatch.setenv("STREAMGEN_SERVE_CONFIG", str(file))  # is known
    told = refusal(file, engine="fast", allow_origin=("https://fine.example", "site"), media_ports="9-1")
    assert told == [
        "--allow-origin: give scheme and host, such as https://play.example (given: 'site')",
        f"--engine: choose one of {', '.join(ENGINES)} (given: 'fast')",
        "--media-ports: give FIRST-LAST between 1024 and 65535, such as 50000-50100 (given: '9-1')",
        f"{file}: _case_sensitive: there is no such setting",
        f"{file}: max_sesions: there is no such setting; is max_sessions meant?",
        f"{file}: max_viewers: Input should be a valid integer, unable to parse string as an integer (given: 'many')",
        "STREAMGEN_SERVE_ALOW_HOST: there is no such setting; is allow_host meant?",
        "STREAMGEN_SERVE_PORT: Input should be less than or equal to 65535 (given: '70000')",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"port: [1", "line 1: is not YAML"),
        (b"- port\n", "must hold names and values"),
        (b"port: \xff\n", "is not UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none(file: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        file.write_bytes(content)
    (line,) = refusal(file)
    assert line.startswith(str(file)) and told in line


def test_an_empty_file_changes_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert load_settings(file, {}) == Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "play.example"])
def test_other_machines_are_served_only_with_keys_or_on_purpose(host: str) -> None:
    (line,) = refusal(host=host)
    assert line.startswith(f"host {host} can be reached from other machines")
    load_settings(None, {"host": host, "allow_anyone": True})
    load_settings(None, {"host": host, "api_key": (HASH,)})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert not load_settings(None, {"host": host}).keys


def test_secrets_are_in_no_error_and_no_text(tmp_path: Path) -> None:
    secret = "sg_" + "s" * 43
    keys = tmp_path / "keys"
    keys.write_text(f"{HASH}\n{secret}\n")
    told = refusal(api_key=(secret,), ice_server=(f"turn:turn.example,{secret}", f"http://x,me,{secret}"))
    assert len(told) == 3 and not any(secret in line for line in told)
    (line,) = refusal(api_key_file=str(keys))
    assert f"--api-key-file: {keys}, line 2: " in line and secret not in line
    assert HASH[7:] not in repr(load_settings(None, {"api_key": (HASH,)}))


def test_keys_come_once(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"\n{HASH},2  # a friend\n")
    assert refusal(api_key=(HASH,), api_key_file=str(keys)) == ["api_key and api_key_file: a key is given twice"]
    assert len(load_settings(None, {"api_key": (OTHER,), "api_key_file": str(keys)}).keys) == 2
    keys.write_text("# nobody yet\n")
    assert "holds no key" in refusal(api_key_file=str(keys))[0]
    assert "No such file" in refusal(api_key_file=str(tmp_path / "nowhere"))[0]


def test_a_certificate_fits_its_key(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = make_certificate(tmp_path / "one"), make_certificate(tmp_path / "two")
    assert load_settings(None, one).tls_cert == tmp_path / "one" / "cert.pem"
    assert refusal(tls_cert=one["tls_cert"]) == ["tls_cert and tls_key: give both or none"]
    for bad in (two["tls_key"], one["tls_cert"], str(tmp_path / "nowhere")):
        (line,) = refusal(tls_cert=one["tls_cert"], tls_key=bad)
        assert line.startswith(
            f"tls_cert {one['tls_cert']} and tls_key {bad} must be a certificate and its private key"
        )


def test_a_folder_for_states_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "of" / "states"
    assert load_settings(None, {"state_dir": str(folder)}).state_dir == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    (line,) = refusal(state_dir=str(tmp_path / "file"))
    assert line.startswith("--state-dir: cannot be made: File exists")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student", ""),
        ("memory_budget_mb", "0"),
        ("allow_host", "https://play.example"),
        ("allow_host", "play.example:8000"),
        ("allow_host", "*"),
        ("allow_origin", "https://play.example/page"),
        ("media_ip", "play.example"),
        ("media_ip", "0.0.0.0"),
        ("media_ports", "50000"),
        ("media_ports", "80-90"),
        ("ice_server", "turn:turn.example"),
        ("ice_server", "stun:stun.example,me,secret"),
        ("ice_server", "turn:turn.example,,"),
        ("max_sessions", "0"),
        ("away_after_s", "0"),
        ("host", ""),
    ],
)
def test_values_out_of_range(name: str, value: str) -> None:
    (line,) = refusal(**{name: value})
    assert line.startswith("--" + name.replace("_", "-") + ": ")
