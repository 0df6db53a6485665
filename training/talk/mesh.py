"""Surfaces of quads: their subdivision, normals, and spheres fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Points = NDArray[np.floating[Any]]
Faces = NDArray[np.integer[Any]]


def subdivide(faces: Faces, count: int) -> tuple[sparse.csr_matrix, Faces]:
    """One step of Catmull and Clark's subdivision ("Recursively generated B-spline surfaces on arbitrary topological
    meshes", 1978) of quads [F, 4] over `count` vertices.

    Returns S [count + edges + F, count], which makes the new vertices from the old ones, and the new quads [4 F, 4].
    Edges of a single face are borders and follow the border's own curve.
    """
    f = len(faces)
    edges = np.sort(np.stack([faces, np.roll(faces, -1, 1)], 2).reshape(-1, 2), 1)
    unique, of_face, uses = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    of_face = of_face.reshape(f, 4)
    e = len(unique)
    is_border = uses != 2
    each_face, each_edge = np.repeat(np.arange(f), 4), np.repeat(np.arange(e), 2)

    face_points = _matrix(0.25, each_face, faces.ravel(), (f, count))
    middles = _matrix(0.5, each_edge, unique.ravel(), (e, count))
    faces_at_edges = _matrix(1.0, of_face.ravel(), each_face, (e, f))
    inner, border = sparse.diags((~is_border).astype(float)), sparse.diags(is_border.astype(float))
    edge_points = inner @ (0.5 * middles + 0.25 * (faces_at_edges @ face_points)) + border @ middles

    # A vertex of valence k: (mean of face points + 2 mean of edge middles + (k - 3) itself) / k.
    valence = np.maximum(np.bincount(faces.ravel(), minlength=count), 1).astype(float)
    at_vertices = _matrix(1.0, faces.ravel(), each_face, (count, f))
    edges_at_vertices = _matrix(1.0, unique.ravel(), each_edge, (count, e))
    inside = sparse.diags(1 / valence**2) @ (at_vertices @ face_points)
    inside = (
        inside + sparse.diags(2 / valence**2) @ (edges_at_vertices @ middles) + sparse.diags((valence - 3) / valence)
    )
    on_border = np.zeros(count, bool)
    on_border[unique[is_border].ravel()] = True
    borders_at_vertices = edges_at_vertices @ border
    along_border = 0.25 * (borders_at_vertices @ middles) + 0.5 * sparse.identity(count)
    vertex_points = (
        sparse.diags((~on_border).astype(float)) @ inside + sparse.diags(on_border.astype(float)) @ along_border
    )

    edge_numbers, face_numbers = count + of_face, count + e + np.arange(f)
    corners = [np.stack([faces[:, k], edge_numbers[:, k], face_numbers, edge_numbers[:, k - 1]], 1) for k in range(4)]
    return sparse.vstack([vertex_points, edge_points, face_points]).tocsr(), np.stack(corners, 1).reshape(-1, 4)


def _matrix(value: float, rows: Faces, columns: Faces, shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.full(len(rows), value), (rows, columns)), shape)


class Surface:
    """A part of a mesh, subdivided once.

    ids: [n] its vertices' numbers in the mesh. smoothing: [m, n] from them to the finer vertices. quads, triangles: of
    those.
    """

    def __init__(self, faces: Faces) -> None:
        """faces: [F, 4] of the part, numbered as in the mesh."""
        ids, local = np.unique(faces, return_inverse=True)
        self.ids: NDArray[np.int64] = ids.astype(np.int64)
        smoothing, self.quads = subdivide(local.reshape(faces.shape), len(self.ids))
        self.smoothing = smoothing.astype(np.float32)
        self.triangles = np.concatenate([self.quads[:, [0, 1, 2]], self.quads[:, [0, 2, 3]]]).astype(np.int32)
        corners = np.repeat(np.arange(len(self.quads)), 4)
        self._at_vertices = _matrix(
            1.0, self.quads.ravel(), corners, (self.smoothing.shape[0], len(self.quads))
        ).astype(np.float32)

    def refine(self, values: Points) -> Points:
        """values [n] or [n, k] of `ids` at the finer vertices: [m] or [m, k]."""
        refined: Points = self.smoothing @ values.astype(np.float32)
        return refined

    def normals(self, points: Points) -> Points:
        """[m, 3] of the finer vertices at points [m, 3]."""
        a, b, c, d = (points[self.quads[:, k]] for k in range(4))
        summed: Points = self._at_vertices @ np.cross(c - a, d - b)
        return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)

    def blur(self, values: Points) -> Points:
        """values [m], each mixed half and half with the mean of the faces around it."""
        faces_mean = values[self.quads].mean(1)
        around = (self._at_vertices @ faces_mean) / np.maximum(np.asarray(self._at_vertices.sum(1)).ravel(), 1)
        return 0.5 * values + 0.5 * around


def triangle_normals(points: Points, triangles: Faces) -> Points:
    """[n, 3] of vertices at points [n, 3]: the mean of their triangles' [T, 3], by area."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    crossed = np.cross(b - a, c - a)
    summed = np.stack(
        [np.bincount(triangles.ravel(), np.repeat(crossed[:, axis], 3), len(points)) for axis in range(3)], 1
    )
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-9)


def fit_sphere(points: Points) -> tuple[Points, float]:
    """Centre [3] and radius of the sphere nearest to points [n, 3], by least squares."""
    design = np.hstack([2 * points, np.ones((len(points), 1))])
    solution = np.linalg.lstsq(design, (points**2).sum(1), rcond=None)[0]
    return solution[:3], float(np.sqrt(solution[3] + (solution[:3] ** 2).sum()))


def fit_affine(source: Points, target: Points) -> Points:
    """[4, 3]: the affine map nearest to taking source [n, 3] to target [n, 3], for `apply_affine`."""
    return np.linalg.lstsq(np.hstack([source, np.ones((len(source), 1))]), target, rcond=None)[0]


def apply_affine(affine: Points, points: Points) -> Points:
    """points [n, 3] moved."""
    return np.hstack([points, np.ones((len(points), 1))]) @ affine
