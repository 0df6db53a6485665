"""Reading and writing the weights of a student folder (diffusers layout, safetensors)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamgen.config import AutoencoderConfig, SpeechConfig, TransformerConfig
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.face import Face
from streamgen.models.pose import Pose
from streamgen.models.speech import SpeechEncoder
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import WEIGHTS, StudentError

_POSE = "pose."
"""Never rounded to bf16: a turn by five degrees would be off by a degree after five seconds, and edges by a pixel."""
_FEATURES = "pose.view.grids", "pose.view.sprites"
"""Of a pose, those that only say what something looks like. They are most of its weights."""


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model's weights as safetensors in `dtype`; in fp32 what moves a pose and where things are."""

    def stored(name: str, value: Tensor) -> Tensor:
        return value if name.startswith(_POSE) and not name.startswith(_FEATURES) else value.to(dtype)

    save_tensors({name: stored(name, value) for name, value in model.state_dict().items()}, path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that everybody may read, as the other files of a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.chmod(0o644)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model in its own precision. Raises StudentError naming what is missing, unexpected or of another shape."""
    try:
        stored: dict[str, Tensor] = load_file(path)
        model.load_state_dict({name: value.float() for name, value in stored.items()})
    except (OSError, RuntimeError, ValueError) as error:
        raise StudentError(f"{path}: the weights cannot be loaded: {error}") from error


def save_autoencoder(model: Autoencoder, folder: Path) -> None:
    """Write `vae/` into a run or student folder, in fp32."""
    _save(model, folder / "vae", model.config.model_dump(mode="json"))


def save_transformer(model: CausalVideoTransformer, folder: Path) -> None:
    """Write `transformer/` into a run or student folder, in fp32."""
    _save(model, folder / "transformer", model.config.model_dump(mode="json"))


def _save(model: nn.Module, folder: Path, config: dict[str, object]) -> None:
    save_weights(model, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"_class_name": type(model).__name__} | config, indent=2) + "\n")


def save_pose(model: Pose, folder: Path) -> None:
    """Write `pose/` into a run folder, in fp32."""
    save_weights(model, folder / "pose" / WEIGHTS)


def load_pose(model: Pose, folder: Path) -> None:
    """Fill the pose of a transformer from a run folder. Raises StudentError when it is none, or of another size."""
    load_weights(model, folder / "pose" / WEIGHTS)


def save_face(model: Face, folder: Path) -> None:
    """Write `face/` into a run folder, in fp32."""
    save_weights(model, folder / "face" / WEIGHTS)


def load_face(model: Face, folder: Path) -> None:
    """Fill the face of a transformer from a run folder. Raises StudentError when it is none, or of another size."""
    load_weights(model, folder / "face" / WEIGHTS)


def save_speech(model: SpeechEncoder, folder: Path) -> None:
    """Write `speech/` into a run or student folder, in fp32."""
    _save(model, folder / "speech", model.config.model_dump(mode="json"))


def load_speech(folder: Path) -> SpeechEncoder:
    """The frozen speech encoder of a run or student folder."""
    model = SpeechEncoder(SpeechConfig.model_validate(_config(folder / "speech")))
    load_weights(model, folder / "speech" / WEIGHTS)
    return model.requires_grad_(False).eval()


def load_autoencoder(folder: Path) -> Autoencoder:
    """The frozen autoencoder of a run or student folder."""
    model = Autoencoder(AutoencoderConfig.model_validate(_config(folder / "vae")))
    load_weights(model, folder / "vae" / WEIGHTS)
    return model.requires_grad_(False).eval()


def load_transformer(folder: Path) -> CausalVideoTransformer:
    """The transformer of a run or student folder, in fp32."""
    model = CausalVideoTransformer(TransformerConfig.model_validate(_config(folder / "transformer")))
    load_weights(model, folder / "transformer" / WEIGHTS)
    return model.requires_grad_(False).eval()


def to_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a model calculate in `dtype`, but for what moves a pose and sees from it; latents stay in fp32."""
    for name, parameter in model.named_parameters():
        if not name.startswith(_POSE):
            parameter.data = parameter.data.to(dtype)


def _config(folder: Path) -> dict[str, object]:
    try:
        config: dict[str, object] = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise StudentError(f"{folder}: no readable config.json: {error}") from error
    config.pop("_class_name", None)
    return config
