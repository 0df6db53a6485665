"""Student folders: a student's files in diffusers layout, read without torch.

model_index.json                              StudentConfig and the component classes
transformer/{config.json, diffusion_pytorch_model.safetensors}
vae/{config.json, diffusion_pytorch_model.safetensors}
speech/{config.json, diffusion_pytorch_model.safetensors}, speech.onnx    of one that speech drives
step_1.onnx, step_2.onnx, …, commit.onnx      the rollout's graphs; their weights are the safetensors files above
encode.onnx                                   of one that can be whoever a picture shows
ranges.json                                   what goes into its convolutions, for engines that calculate in eight bits
starts.safetensors                            latents [S, H, C, h, w] and actions [S, H, A] that streams begin from, and
                                              pictures [S, H, W, 3] of the first ones for a decoder that looks at them
README.md                                     the card
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from streamgen.config import AutoencoderConfig, SpeechConfig, StudentConfig, TransformerConfig
from streamgen.state import StreamState

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT_GRAPH = "commit.onnx"
SPEECH_GRAPH = "speech.onnx"
ENCODE_GRAPH = "encode.onnx"
PASS_GRAPH, SINKS_GRAPH, DECODE_GRAPH = "pass.onnx", "sinks.onnx", "decode.onnx"
"""Of a rollout in pieces, for runtimes that write into a cache; made when wanted, and not in the folder."""
PICTURE = "picture"
"""The input of graphs that decode, where that takes the picture of the reference."""
STARTS = "starts.safetensors"
RANGES = "ranges.json"
NO_CARD = "Nobody has written its card yet."
"""What the card of an exported student says until somebody has."""

SHIPPED = Path(__file__).parent / "students"
_CLASSES = {
    "transformer": ["streamgen.models.transformer", "CausalVideoTransformer"],
    "vae": ["streamgen.models.autoencoder", "Autoencoder"],
    "speech": ["streamgen.models.speech", "SpeechEncoder"],
}
"""Component of a student and the class that it is one of."""


class StudentError(ValueError):
    """A student folder is missing or cannot be used; the message names the file."""


class Reference(NamedTuple):
    """Somebody at rest (`engines.reference`): latents [C, h, w] and, where the student's decoder looks at it, the
    picture [H, W, 3] of which they are (`StudentConfig.picture_shape`).
    """

    latents: NDArray[np.float16]
    picture: NDArray[np.uint8]


Ranges = dict[str, tuple[float, float]]
"""Least and greatest value that goes into the convolution with the weights of this name."""

_Config = TypeVar("_Config", bound=BaseModel)

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)")
_HUB_FILES = ["*.json", "*.safetensors", "*.onnx", "README.md"]
"""Nothing that could run code is fetched."""


def reference_text(reference: Reference) -> str:
    """A reference in base64."""
    return base64.b64encode(reference.latents.astype("<f2").tobytes() + reference.picture.tobytes()).decode()


def reference_from(text: str, config: StudentConfig) -> Reference:
    """What `reference_text` was given. Raises ValueError where it is not one of this student's."""
    data, size = base64.b64decode(text), 2 * math.prod(config.latent_shape)
    latents = np.frombuffer(data[:size], "<f2").astype(np.float16).reshape(config.latent_shape)
    return Reference(latents, np.frombuffer(data[size:], np.uint8).reshape(config.picture_shape))


def step_graph(steps: int) -> str:
    """File name of the graph that generates a block in `steps` denoising steps."""
    return f"step_{steps}.onnx"


def shipped_students() -> list[str]:
    """Names of the students that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def write_config(folder: Path, config: StudentConfig) -> None:
    """Write the three configuration files of a student folder."""
    parts = _parts(config)
    index = config.model_dump(mode="json", exclude=set(_CLASSES))
    components = {name: _CLASSES[name] for name in parts}
    files: dict[str, Any] = {"model_index.json": {"_class_name": "StreamgenPipeline"} | components | {"student": index}}
    for name, part in parts.items():
        files[f"{name}/config.json"] = {"_class_name": _CLASSES[name][1]} | part.model_dump(mode="json")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text, indent=2) + "\n")


@dataclass(frozen=True)
class Student:
    """A student folder. `hash` names its content: configuration, weights, graphs and starts."""

    path: Path
    config: StudentConfig
    hash: str

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Student:
        """Open a shipped student by name, a folder by path, or OWNER/NAME@REVISION from the Hugging Face Hub.

        Raises StudentError.
        """
        path = Path(name_or_path)
        if not path.exists() and (hub := _HUB_ID.fullmatch(str(name_or_path))):
            path = _download(hub["repository"], hub["revision"])
        if not (path / "model_index.json").is_file() and path.name == str(name_or_path):
            path = SHIPPED / path.name
        if not (path / "model_index.json").is_file():
            shipped = ", ".join(shipped_students()) or "none shipped"
            raise StudentError(
                f"no student at {name_or_path}: give a folder with a model_index.json, OWNER/NAME@REVISION of the hub, "
                f"or one of {shipped}"
            )
        config = _read_config(path)
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.suffix in {".json", ".safetensors", ".onnx"}):
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return cls(path, config, digest.hexdigest())

    def file(self, name: str) -> Path:
        """Path of one of the folder's files. Raises StudentError when it is not there."""
        path = self.path / name
        if not path.is_file():
            raise StudentError(
                f"student {self.config.name}: {name} is missing in {self.path}; write it with `streamgen export`"
            )
        return path

    @property
    def parts(self) -> list[str]:
        """Names of the folders that hold weights."""
        return list(_parts(self.config))

    @property
    def graphs(self) -> list[str]:
        """File names of the graphs that serving needs."""
        speech = [SPEECH_GRAPH] if self.config.speech else []
        encode = [] if self.config.likeness is None else [ENCODE_GRAPH]
        return [COMMIT_GRAPH, *map(step_graph, self.config.step_plans), *speech, *encode]

    @cached_property
    def ranges(self) -> Ranges:
        """Empty where nobody measured them. Raises StudentError."""
        path = self.path / RANGES
        if not path.is_file():
            return {}
        try:
            return TypeAdapter(Ranges).validate_json(path.read_bytes())
        except ValidationError as error:
            raise StudentError(f"{path} is damaged: {error}; fetch it or `streamgen export` it again") from error

    @cached_property
    def _starts(self) -> tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.uint8]]:
        path = self.file(STARTS)
        try:
            stored = load_file(path)
            latents, actions = stored["latents"].astype(np.float16), stored["actions"].astype(np.float32)
            pictures = stored.get("pictures", np.zeros((len(latents), 0, 0, 3), np.uint8))
        except (OSError, KeyError, SafetensorError) as error:
            raise StudentError(f"{path} is damaged: {error}; fetch it or `streamgen export` it again") from error
        wanted = self.config.latent_shape
        driven = (*latents.shape[:2], self.config.action_dim)
        owners = max(1, len(self.config.identities))
        shown = (len(latents), *self.config.picture_shape)
        fits = latents.shape[2:] == wanted and actions.shape == driven and pictures.shape == shown
        if not len(latents) or len(latents) % owners or not fits:
            shapes = f"{latents.shape}, {actions.shape} and {pictures.shape}"
            raise StudentError(f"{path}: starts of shape {shapes} do not fit the student")
        return latents, actions, pictures

    def check(self) -> None:
        """Look at every file that serving needs. Raises StudentError for the first that is missing or damaged."""
        for graph in self.graphs:
            self.file(graph)
        for part in self.parts:
            path = self.file(f"{part}/{WEIGHTS}")
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except (OSError, SafetensorError) as error:
                raise StudentError(f"{path} is damaged: {error}; fetch it or `streamgen export` it again") from error
        self.start(0)

    def start(self, seed: int, identity: str | None = None, reference: Reference | None = None) -> StreamState:
        """The state of a new stream: the seed picks one of the identity's starts and feeds the noise.

        identity: None is the first. reference: of whom it is to be instead; it has shown that for as long as a start.
        Raises StudentError for an identity that the student does not have.
        """
        latents, actions, pictures = self._starts
        if reference is not None:
            shown = np.broadcast_to(reference.latents, latents.shape[1:])
            return StreamState.begin(self.config, self.hash, seed, shown, np.zeros_like(actions[0]), reference.picture)
        known = self.config.identities
        if identity is not None and identity not in known:
            raise StudentError(f"{self.config.name} cannot be {identity!r}: {', '.join(known) or 'it is nobody'}")
        each = len(latents) // max(1, len(known))
        pick = (known.index(identity) * each if identity else 0) + seed % each
        return StreamState.begin(self.config, self.hash, seed, latents[pick], actions[pick], pictures[pick])

    def starts(self) -> Iterator[StreamState]:
        """One after another, of all identities."""
        for seed, start in enumerate(zip(*self._starts, strict=True)):
            yield StreamState.begin(self.config, self.hash, seed, *start)


def _download(repository: str, revision: str) -> Path:
    """A repository's files at a revision, from the local cache or the hub."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise StudentError(f"{repository} is on the hub: install streamgen with the extra `hub`") from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StudentError(f"{repository}@{revision} cannot be fetched from the hub: {error}") from error


def _read_config(path: Path) -> StudentConfig:
    parts: dict[str, BaseModel] = {
        name: _read(path / name / "config.json", model, lambda stored: stored)
        for name, model in (("transformer", TransformerConfig), ("vae", AutoencoderConfig))
    }
    if (path / "speech").is_dir():
        parts["speech"] = _read(path / "speech" / "config.json", SpeechConfig, lambda stored: stored)
    return _read(path / "model_index.json", StudentConfig, lambda stored: stored["student"] | parts)


def _parts(config: StudentConfig) -> dict[str, BaseModel]:
    parts: dict[str, BaseModel] = {"transformer": config.transformer, "vae": config.vae}
    return parts | {"speech": config.speech} if config.speech else parts


def _read(file: Path, model: type[_Config], values: Callable[[Any], dict[str, Any]]) -> _Config:
    """A configuration in a JSON file. Raises StudentError, in one line."""
    try:
        given = values(json.loads(file.read_text()))
        return model.model_validate({key: value for key, value in given.items() if key != "_class_name"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = str(error)
    raise StudentError(f"{file}: this part of the student's configuration cannot be read: {why}")
