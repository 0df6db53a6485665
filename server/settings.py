"""What an operator can set, and where it comes from: flag over environment variable over file over default.

A setting has one name everywhere: `max_sessions` in the file is `--max-sessions` and `STREAMGEN_SERVE_MAX_SESSIONS`.
Times are seconds.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from aiortc.rtcicetransport import parse_stun_turn_uri
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from engines.select import ENGINES
from server.keys import ApiKey, read_keys

ENV_PREFIX = "STREAMGEN_SERVE_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
_LEAST_PORT = 1024

T = TypeVar("T")


class SettingsError(ValueError):
    """What an operator set cannot be used. One line for each mistake, which begins with where it was made."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server. url: RFC 7064 or 7065; username and credential belong to TURN."""

    url: str
    username: str | None = None
    credential: str | None = None

    @classmethod
    def parse(cls, text: str) -> IceServer:
        """Read `URL` or `URL,USERNAME,CREDENTIAL`. Raises ValueError, which does not repeat the credential."""
        url, *rest = text.split(",", 2)
        try:
            turn = parse_stun_turn_uri(url)["scheme"].startswith("turn")
        except ValueError:
            raise ValueError(f"ICE server {url!r}: its URL is stun:HOST[:PORT] or turn:HOST[:PORT]") from None
        if len(rest) != 2 * turn or not all(rest):
            wanted = f"{url},USERNAME,CREDENTIAL" if turn else "its URL alone"
            raise ValueError(f"ICE server {url!r}: give {wanted}")
        return cls(url, *rest)

    def for_browser(self) -> dict[str, str]:
        """An RTCIceServer of the WebRTC interface."""
        if self.username is None or self.credential is None:
            return {"urls": self.url}
        return {"urls": self.url, "username": self.username, "credential": self.credential}


@dataclass(frozen=True, slots=True)
class PortRange:
    """UDP ports from first to last, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read `FIRST-LAST`. Raises ValueError."""
        first, _, last = text.partition("-")
        if not (first.isdecimal() and last.isdecimal() and _LEAST_PORT <= int(first) <= int(last) <= 65535):
            raise ValueError(f"give FIRST-LAST between {_LEAST_PORT} and 65535, such as 50000-50100")
        return cls(int(first), int(last))


def _from_text(parse: Callable[[str], T]) -> PlainValidator:
    def read(value: object) -> T:
        if not isinstance(value, str):
            raise ValueError(f"give it as text, not as {type(value).__name__}")
        return parse(value)

    return PlainValidator(read)


def _split(value: object) -> object:
    """Several values in one text, as environment variables have them, stand between white space."""
    return value.split() if isinstance(value, str) else value


def _host_name(name: str) -> str:
    if not name or name != name.strip() or any(mark in name for mark in "/*,@ ") or (name.count(":") == 1):
        raise ValueError("give the name alone, without scheme and port, such as play.example")
    return name


def _origin(origin: str) -> str:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/") or parts.query:
        raise ValueError("give scheme and host, such as https://play.example")
    return origin


def _address(text: str) -> str:
    if ipaddress.ip_address(text).is_unspecified:
        raise ValueError("give the address under which others reach this machine")
    return text


def _private_folder(path: Path) -> Path:
    """Made if it is not there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot be made: {error.strerror or error}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError("give a folder that the server may write to")
    return path


def _engine(name: str) -> str:
    if name not in ENGINES:
        raise ValueError(f"choose one of {', '.join(ENGINES)}")
    return name


Several = BeforeValidator(_split)


class Settings(BaseSettings):
    """One server's addresses, keys and limits. Made directly, it takes nothing from the environment.

    A field's title is what the help calls its value; one without repr is a secret and no error shows it.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        validate_default=False,
    )

    host: str = Field("127.0.0.1", min_length=1, title="ADDRESS", description="Address to bind; 0.0.0.0 is every one.")
    port: int = Field(8000, ge=0, le=65535, title="PORT", description="TCP port; 0 takes a free one.")
    student: Annotated[tuple[str, ...], Several] = Field(
        ("world",),
        min_length=1,
        title="NAME|FOLDER",
        description="A student that comes with streamgen, or a folder; of several, the first is for who names none.",
    )
    engine: Annotated[str, AfterValidator(_engine)] = Field(
        "auto", title="|".join(ENGINES), description="Runtime of the student."
    )
    threads: int | None = Field(None, ge=1, title="N", description="CPU threads of the engine.")
    memory_budget_mb: int | None = Field(
        None,
        ge=1,
        title="MB",
        description="For the workers of all students; three quarters of the machine's memory if not given.",
    )
    state_dir: Annotated[Path, AfterValidator(_private_folder)] | None = Field(
        None, title="FOLDER", description="Keep the streams here over a restart; without it they end with the server."
    )

    api_key: Annotated[tuple[Annotated[ApiKey, _from_text(ApiKey.parse)], ...], Several] = Field(
        (), repr=False, title="HASH[,SESSIONS]", description="Who may open sessions, from `streamgen key`."
    )
    api_key_file: Annotated[tuple[ApiKey, ...], _from_text(read_keys)] = Field(
        (), repr=False, title="FILE", description="The same, one on a line."
    )
    allow_anyone: bool = Field(False, description="Serve without keys on an address that other machines reach.")
    allow_host: Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], Several] = Field(
        (), title="NAME", description="Another host name under which the server answers."
    )
    allow_origin: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Several] = Field(
        (), title="ORIGIN", description="Another site whose pages may use the server."
    )
    tls_cert: Path | None = Field(None, title="FILE", description="TLS certificate chain, PEM: serve HTTPS.")
    tls_key: Path | None = Field(None, title="FILE", description="Its private key, PEM.")

    media_ip: Annotated[str, AfterValidator(_address)] | None = Field(
        None, title="ADDRESS", description="IP address to announce for media in place of the bound one."
    )
    media_ports: Annotated[PortRange, _from_text(PortRange.parse)] | None = Field(
        None, title="FIRST-LAST", description="UDP ports for media; one for each viewer and address."
    )
    ice_server: Annotated[tuple[Annotated[IceServer, _from_text(IceServer.parse)], ...], Several] = Field(
        (),
        repr=False,
        title="URL[,USERNAME,CREDENTIAL]",
        description="STUN or TURN server; viewers get all of them, the server uses the first of each kind.",
    )
    upscale: int | None = Field(
        None, ge=1, le=8, title="N", description="Enlarge H.264 and VP8 video; chosen by its height if not given."
    )

    max_sessions: int = Field(8, ge=1, le=1024, title="N", description="Sessions at once.")
    max_sessions_per_key: int = Field(2, ge=1, title="N", description="Of those, for one key that says nothing else.")
    max_load: float = Field(
        0.95,
        gt=0,
        title="SHARE",
        description="Of the machine, by measurement, that streams may take; above 1 they may slow each other down.",
    )
    max_viewers: int = Field(4, ge=1, title="N", description="Viewers of one session.")
    max_body_bytes: int = Field(64 * 1024, ge=4096, title="N", description="Longest body of a request.")
    max_message_bytes: int = Field(4096, ge=256, title="N", description="Longest control message.")
    messages_per_s: float = Field(120.0, gt=0, title="RATE", description="Control messages of one viewer.")
    message_burst: float = Field(240.0, ge=1, title="N", description="Of those, at once.")

    max_sound_bytes: int = Field(
        10 * 2**20, ge=4096, title="N", description="Longest file of sound that an avatar is given to say."
    )
    max_picture_bytes: int = Field(
        2 * 2**20, ge=4096, title="N", description="Longest picture of whom an avatar is to be, in base64."
    )
    max_sound_s: float = Field(
        120.0, gt=0, title="SECONDS", description="What may wait to be said by an avatar at once."
    )

    away_after_s: float = Field(3.0, gt=0, title="SECONDS", description="A viewer that is silent for so long is away.")
    return_within_s: float = Field(30.0, gt=0, title="SECONDS", description="How long a stream waits for its viewers.")
    session_lifetime_s: float = Field(12 * 3600.0, gt=0, title="SECONDS", description="The end of every session.")
    hello_within_s: float = Field(5.0, gt=0, title="SECONDS", description="For the first message on a WebSocket.")
    connect_within_s: float = Field(15.0, gt=0, title="SECONDS", description="For a WebRTC connection to stand.")
    hang_after_s: float = Field(10.0, gt=0, title="SECONDS", description="A worker silent for so long is replaced.")
    ready_within_s: float = Field(600.0, gt=0, title="SECONDS", description="For a worker to load the student.")

    log_json: bool = Field(False, description="Log JSON lines.")
    open: bool = Field(False, description="Open the page in a browser when there is a display.")

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The API keys, wherever they were given; none means that anybody may open sessions."""
        return self.api_key + self.api_key_file

    @property
    def exposed(self) -> bool:
        """Whether other machines may reach the bound address. A name other than localhost counts as one they reach."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() != "localhost"

    @model_validator(mode="after")
    def _known_keys(self) -> Self:
        if len({key.digest for key in self.keys}) < len(self.keys):
            raise ValueError("api_key and api_key_file: a key is given twice")
        if self.exposed and not self.keys and not self.allow_anyone:
            raise ValueError(
                f"host {self.host} can be reached from other machines, and anybody could open sessions: "
                "give an API key (`streamgen key` makes one, api_key takes its hash), or set allow_anyone"
            )
        return self

    @model_validator(mode="after")
    def _usable_certificate(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both or none")
        if self.tls_cert is not None and self.tls_key is not None:
            try:
                # The empty password: OpenSSL would otherwise ask for one on the terminal.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
            except OSError as error:
                raise ValueError(
                    f"tls_cert {self.tls_cert} and tls_key {self.tls_key} must be a certificate and its private key "
                    f"(PEM, no password): {error.strerror or error}"
                ) from None
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load_settings` reads the sources one by one: an error can then name the one that it came from.
        return (init_settings,)


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings of a server. config: YAML file of names and values; flags: what the command line gave.

    A list that is given in two places is replaced, not extended. Raises SettingsError.
    """
    # The same order as everywhere: who comes first wins.
    sources: list[tuple[Callable[[str], str], Mapping[str, Any]]] = [
        (lambda name: "--" + name.replace("_", "-"), flags),
        (lambda name: ENV_PREFIX + name.upper(), {**_unknown_variables(), **EnvSettingsSource(Settings)()}),
        (lambda name: f"{config}: {name}", _read_file(config) if config else {}),
    ]
    known: dict[str, Any] = {}
    mistakes = []
    for spell, values in reversed(sources):
        for name, value in values.items():
            if name in Settings.model_fields:
                known[name] = value
            else:
                alike = difflib.get_close_matches(name, Settings.model_fields, 1)
                mistakes.append(
                    f"{spell(name)}: there is no such setting" + (f"; is {alike[0]} meant?" if alike else "")
                )

    def mistake(error: ErrorDetails) -> str:
        what = error["msg"].removeprefix("Value error, ")
        if not error["loc"]:  # several settings that do not go together: the message names them
            return what
        name = str(error["loc"][0])
        spell = next(spell for spell, values in sources if name in values)
        given = f" (given: {str(error['input'])[:80]!r})" if Settings.model_fields[name].repr else ""
        return f"{spell(name)}: {what}{given}"

    try:
        settings = Settings(**known)
    except ValidationError as error:
        mistakes += map(mistake, error.errors(include_url=False))
        raise SettingsError("\n".join(mistakes)) from None
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return settings


def _unknown_variables() -> dict[str, str]:
    """Variables that begin as ours do; pydantic-settings leaves those out that no setting has."""
    names = {name.upper() for name in os.environ} - {CONFIG_VARIABLE}
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    return {name.removeprefix(ENV_PREFIX).lower(): "" for name in names - known if name.startswith(ENV_PREFIX)}


def _read_file(path: Path) -> dict[str, Any]:
    """Raises SettingsError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{where}: is not YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold names and values, such as `port: 8000`")
    return {str(name): value for name, value in content.items()}
