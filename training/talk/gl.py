"""OpenGL without a screen: the context, programs from the folder `shaders`, and cameras.

Pictures are drawn by Mesa's llvmpipe on the processor unless the environment says otherwise (LIBGL_ALWAYS_SOFTWARE,
GALLIUM_DRIVER, EGL_PLATFORM), so that they are the same on every machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import moderngl

_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
_SOFTWARE = {
    "EGL_PLATFORM": "surfaceless",
    "LIBGL_ALWAYS_SOFTWARE": "1",
    "GALLIUM_DRIVER": "llvmpipe",
    "LP_NUM_THREADS": "0",  # one process a core is faster than threads
}


class RendererError(RuntimeError):
    """There is nothing to draw with; the message says what to install."""


def open_context() -> moderngl.Context:
    """An OpenGL context of this thread. Raises RendererError."""
    try:
        import moderngl
    except ImportError as error:
        raise RendererError(
            f"pictures need moderngl and glcontext: install streamgen with the extra `avatar-data` ({error})"
        ) from error
    for name, value in _SOFTWARE.items():
        os.environ.setdefault(name, value)
    try:
        return moderngl.create_standalone_context(backend="egl")  # type: ignore[arg-type] # settings are mistyped
    except Exception as error:  # glcontext raises nothing more specific
        raise RendererError(
            "no OpenGL through EGL; on Debian: apt-get install --no-install-recommends libegl1 libgl1-mesa-dri "
            f"({error})"
        ) from error


def shader(name: str) -> str:
    """A file of the folder `shaders`, with what it includes."""
    text = (resources.files("training.talk") / "shaders" / name).read_text("utf-8")
    return _INCLUDE.sub(lambda line: shader(line[1]), text)


class Drawable:
    """A program with its uniforms, and the meshes that it draws."""

    def __init__(self, context: moderngl.Context, vertex: str, fragment: str) -> None:
        """vertex, fragment: files of the folder `shaders`."""
        self._context = context
        self._program = context.program(vertex_shader=shader(vertex), fragment_shader=shader(fragment))

    def set(self, **uniforms: ArrayLike | bool) -> None:
        """Set uniforms; those that the program has no use for are passed over. Matrices are given row by row."""
        for name, value in uniforms.items():
            if name not in self._program:
                continue
            uniform: Any = self._program[name]
            array = np.asarray(value)
            if array.ndim == 2:
                uniform.write(array.T.astype("f4").tobytes())
            else:
                uniform.value = tuple(array.tolist()) if array.ndim else array.item()

    def mesh(
        self, buffers: Sequence[tuple[moderngl.Buffer, str]], indices: NDArray[np.int32] | None = None
    ) -> moderngl.VertexArray:
        """What to draw. buffers: each with its columns, such as "place:3 normal:3"; columns that the program has no use
        for are passed over. indices: [n] of triangles' corners; None draws the vertices in their order.
        """
        content = []
        for buffer, columns in buffers:
            formats, names = [], []
            for column in columns.split():
                name, _, width = column.partition(":")
                if name in self._program:
                    formats.append(f"{width}f")
                    names.append(name)
                else:
                    formats.append(f"{4 * int(width)}x")
            if names:
                content.append((buffer, " ".join(formats), *names))
        listed = None if indices is None else self._context.buffer(np.ascontiguousarray(indices, np.int32).tobytes())
        return self._context.vertex_array(self._program, content, listed)


def floats(context: moderngl.Context, values: NDArray[Any]) -> moderngl.Buffer:
    """A buffer of 32-bit floats."""
    return context.buffer(np.ascontiguousarray(values, np.float32).tobytes())


def perspective(angle: float, near: float, far: float) -> NDArray[np.float64]:
    """Projection [4, 4] of a square view `angle` radians high."""
    t = 1 / np.tan(angle / 2)
    depth = near - far
    return np.array([[t, 0, 0, 0], [0, t, 0, 0], [0, 0, (far + near) / depth, 2 * far * near / depth], [0, 0, -1, 0]])


def orthographic(half: float, near: float, far: float) -> NDArray[np.float64]:
    """Projection [4, 4] of parallel rays, 2 `half` wide and high."""
    depth = far - near
    return np.array([[1 / half, 0, 0, 0], [0, 1 / half, 0, 0], [0, 0, -2 / depth, -(far + near) / depth], [0, 0, 0, 1]])


def looking(eye: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """View [4, 4] from one place towards another, upright."""
    forward = unit(target - eye)
    right = unit(np.cross(forward, [0, 1, 0]))
    view = np.eye(4)
    view[:3, :3] = right, np.cross(right, forward), -forward
    view[:3, 3] = -view[:3, :3] @ eye
    return view


def unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """vectors [..., 3] at length 1; those of no length stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9))
