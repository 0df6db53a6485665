"""An identity's head as geometry: at rest, and with its face as 52 shapes say. No OpenGL in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from training.talk import morphs
from training.talk.arkit import INDEX, SHAPES, SIDES
from training.talk.assets import Head
from training.talk.identity import Identity
from training.talk.mesh import (
    Points,
    Surface,
    apply_affine,
    fit_affine,
    fit_sphere,
    triangle_normals,
)
from training.talk.teeth import TONGUE, make_rows

_EYES = (0.0, 7.284, 1.245)
"""Where the middle between the eyes is put: all heads look out of the picture at the same height."""
_SCALE = 0.85
"""Of MakeHuman's decimetres: its heads are large."""
_TOUCH = -0.010
"""Between lips that meet along their whole width: they press by a millimetre."""
_SEALING = -0.02, 0.20
"""How much of the shape mouthClose the face at rest may take on."""
_CORNERS = 0.018
"""How far the corners of a mouth at rest lie above its middle; lower ones look gloomy."""
_LIFTING = 0.25
"""How much of a smile the face at rest may take on."""
LASHES = ("left lashes 1", "left lashes 2", "right lashes 1", "right lashes 2")


class Posed(NamedTuple):
    """Places and normals of what moves with the face, [., 3] each."""

    skin: Points
    skin_normals: Points
    oral: Points
    """Teeth, gums and tongue."""
    oral_normals: Points
    lashes: Points


class Topology:
    """What all identities share: surfaces cut out of the base mesh, and what is where on them."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.skin, self.tongue = Surface(head.faces["skin"]), Surface(head.faces["tongue"])
        self.lower_teeth = head.ids("lower teeth")
        self.lashes = head.ids(*LASHES)
        self.canonical = self.skin.refine(head.vertices[self.skin.ids])
        """[m, 3] of the base mesh, at the skin's finer vertices."""
        self.masks = np.clip(self.skin.refine(head.masks[self.skin.ids]), 0, 1)
        self.follows = self.skin.refine(head.follows[self.skin.ids])
        self.lip_front = float(head.vertices[head.masks[:, 0] > 0.5, 2].max())
        self.rows = make_rows(head.vertices[head.ids("upper teeth")], head.vertices[self.lower_teeth])
        upper, lower = self.rows
        tongue = self.tongue.refine(head.vertices[self.tongue.ids])
        count = len(upper.vertices), len(lower.vertices)
        self.oral_triangles = np.concatenate(
            [upper.triangles, lower.triangles + count[0], self.tongue.triangles + sum(count)]
        ).astype(np.int32)
        self.oral_kinds = np.concatenate(
            [upper.kinds, lower.kinds, np.column_stack([np.full(len(tongue), TONGUE), tongue[:, 1:]])]
        )
        self.lash_triangles = self._lash_triangles()

    def _lash_triangles(self) -> NDArray[np.int32]:
        quads = np.searchsorted(self.lashes, np.concatenate([self.head.faces[name] for name in LASHES]))
        return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


class Shape:
    """An identity's head."""

    def __init__(self, topology: Topology, identity: Identity, rng: np.random.Generator) -> None:
        """Draws the face's own modifiers from `rng`."""
        self._topology, head = topology, topology.head
        self._neutral = _at_rest(head, identity, rng)
        self.eyes = [fit_sphere(self._neutral[head.ids(side)]) for side in ("left eye", "right eye")]
        """Centre and radius of the left and the right one."""
        at_neck, at_head = (self._neutral[head.ids(joint)].mean(0) for joint in ("neck joint", "head joint"))
        self.pivot = 0.35 * at_neck + 0.65 * at_head
        """Of the head's turns."""
        self._skin_moves, self._tongue_moves = self._moves(topology.skin.ids), self._moves(topology.tongue.ids)
        self._teeth_moves, self._lash_moves = self._moves(topology.lower_teeth), self._moves(topology.lashes)
        self._skin = self._neutral[topology.skin.ids].astype(np.float32)
        self._lift()
        self._seal()
        self._rest_rows()
        # The tongue's tip moves most; its root stays.
        forward = head.vertices[topology.tongue.ids, 2]
        self._tip = np.clip((forward - 0.85) / 0.5, 0, 1)[:, None] ** 1.5
        self.skin = topology.skin.refine(self._skin)
        """[m, 3] at rest."""
        self.normals = topology.skin.normals(self.skin)

    def _moves(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[52, 3 n]: what each shape does to these vertices."""
        head = self._topology.head
        place = np.full(len(head.vertices), -1)
        place[ids] = np.arange(len(ids))
        moves = np.zeros((len(SHAPES), len(ids), 3), np.float32)
        for row, name in enumerate(SHAPES):
            moved, deltas = head.targets[name]
            here = place[moved]
            moves[row, here[here >= 0]] = deltas[here >= 0] * _SCALE
        return moves.reshape(len(SHAPES), -1)

    def _lift(self) -> None:
        """Raise the corners of the mouth at rest to a friendly height: some of a smile becomes part of it."""
        topology = self._topology
        masks = topology.head.masks[topology.skin.ids]
        lips = np.flatnonzero((masks[:, 0] > 0.5) & (masks[:, 1] < 0.5))
        across = topology.head.vertices[topology.skin.ids[lips], 0]
        corners = lips[[int(across.argmax()), int(across.argmin())]]
        upper, lower = self._lips()
        smile = sum(self._skin_moves[INDEX["mouthSmile" + side]].reshape(-1, 3) for side in SIDES)
        middle = (self._skin[upper, 1].min() + self._skin[lower, 1].max()) / 2
        missing = _CORNERS - (self._skin[corners, 1].mean() - middle)
        travel = smile[corners, 1].mean() - smile[np.concatenate([upper, lower]), 1].mean()
        self._skin = self._skin + np.float32(np.clip(missing / travel, 0, _LIFTING)) * smile

    def _seal(self) -> None:
        """Close the lips at rest: modifiers can leave them apart. What is missing of mouthClose becomes part of it."""
        closing = self._skin_moves[INDEX["mouthClose"]].reshape(-1, 3)
        upper, lower = self._lips()
        travel = float(closing[lower, 1].mean() - closing[upper, 1].mean())
        share = (self.lip_gap(self._skin) - _TOUCH) / max(travel, 1e-3)
        self._skin = self._skin + np.float32(np.clip(share, *_SEALING)) * closing

    def _rest_rows(self) -> None:
        """Fit both rows of teeth to this head's jaws."""
        topology, head = self._topology, self._topology.head
        upper, lower = topology.rows
        jaw = head.ids("upper teeth")
        self._upper = apply_affine(fit_affine(head.vertices[jaw], self._neutral[jaw]), upper.vertices)
        jaw = topology.lower_teeth
        self._lower = apply_affine(fit_affine(head.vertices[jaw], self._neutral[jaw]), lower.vertices)

    def _lips(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the vertices that touch are in `Surface.ids`."""
        ids, head = self._topology.skin.ids, self._topology.head
        return np.searchsorted(ids, head.upper_lip), np.searchsorted(ids, head.lower_lip)

    def lip_gap(self, coarse: Points) -> float:
        """Height of the opening between the lips in decimetres for the skin's vertices [n, 3]; below 0 they press."""
        upper, lower = self._lips()
        return float(coarse[upper, 1].min() - coarse[lower, 1].max())

    def coarse_skin(self, arkit: ArrayLike) -> Points:
        """[n, 3]: the skin's vertices before subdivision, moved by the 52 shapes' weights."""
        return self._skin + (np.asarray(arkit, np.float32) @ self._skin_moves).reshape(-1, 3)

    def lash_places(self) -> Points:
        """[., 2] of each vertex of the lashes: along the lid, and from root (0) to tip (1)."""
        topology = self._topology
        distance, _ = KDTree(self.skin).query(self._neutral[topology.lashes])
        to_tip = np.zeros(len(topology.lashes))
        for name in LASHES:
            here = np.searchsorted(topology.lashes, topology.head.ids(name))
            away = distance[here] - distance[here].min()
            to_tip[here] = np.clip(away / (np.percentile(away, 90) + 1e-6), 0, 1)
        return np.stack([np.abs(topology.head.vertices[topology.lashes, 0]), to_tip], 1)

    def posed(self, arkit: NDArray[np.float32], tongue: NDArray[np.float32]) -> Posed:
        """The head as the weights [52] and the tongue [2] (raised, put forward; 0 to 1) say."""
        topology = self._topology
        skin = topology.skin.refine(self.coarse_skin(arkit))
        soft = self._neutral[topology.tongue.ids] + (arkit @ self._tongue_moves).reshape(-1, 3)
        soft += self._tip * (tongue[0] * np.array([0, 0.20, -0.02]) + tongue[1] * np.array([0, 0.03, 0.17]))
        jaw = self._neutral[topology.lower_teeth]
        dropped = fit_affine(jaw, jaw + (arkit @ self._teeth_moves).reshape(-1, 3))
        lower = apply_affine(dropped, self._lower)
        oral = np.concatenate([self._upper, lower, topology.tongue.refine(soft)])
        lashes = self._neutral[topology.lashes] + (arkit @ self._lash_moves).reshape(-1, 3)
        return Posed(skin, topology.skin.normals(skin), oral, triangle_normals(oral, topology.oral_triangles), lashes)


def mouth_opening(arkit: NDArray[np.float32]) -> float:
    """From 0 to 1: how much light falls into the mouth."""
    weights = {
        "jawOpen": 1.3,
        "mouthClose": -1.0,
        "mouthLowerDownLeft": 0.15,
        "mouthUpperUpLeft": 0.15,
        "mouthFunnel": 0.3,
    }
    return float(np.clip(sum(weight * arkit[INDEX[name]] for name, weight in weights.items()), 0, 1))


def _at_rest(head: Head, identity: Identity, rng: np.random.Generator) -> Points:
    """The whole mesh [n, 3] in this identity's shape, brought to the usual place and size."""
    person = morphs.build(identity.gender, identity.age, identity.ancestry, identity.weight, identity.muscle)
    vertices = head.morphed(person) + head.morphed(morphs.modified(rng)) - head.vertices
    eyes = np.mean([fit_sphere(vertices[head.ids(side)])[0] for side in ("left eye", "right eye")], 0)
    return (vertices - eyes) * _SCALE + np.array(_EYES)
