"""Draws heads: an identity is loaded once, then each pose is a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.talk.arkit import INDEX, SIDES
from training.talk.assets import load_head
from training.talk.gl import Drawable, floats, open_context, unit
from training.talk.hair import Hair, grow, ribbon_triangles, ribbons
from training.talk.identity import Identity, draw_identity
from training.talk.light import CAMERA, backdrop_for, lights_for, projections_for
from training.talk.occlusion import openness, rotation, strands_in_sight
from training.talk.performance import Pose
from training.talk.shape import Shape, Topology, mouth_opening
from training.talk.skin import flush, paint

if TYPE_CHECKING:
    import moderngl

Array = NDArray[np.floating[Any]]

_SUPERSAMPLING = 2
_SHADOWS = 1024
"""Width and height of the shadow map; light.glsl knows it too."""
_FACE_ABOVE, _CLOTH_BELOW = 5.35, 6.05
"""Heights on the base mesh between which skin and clothes overlap."""
_CLOTH_THICKNESS = 0.035
_SHADOW_UNIT, _DETAIL_UNIT, _BACKDROP_UNIT, _HEAD_UNIT, _RELIEF_UNIT = range(5)
_POSED = ("skin", "cloth", "eye", "oral", "lash", "hair", "hair_depth", "skin_shadow", "hair_shadow")
_PROGRAMS = {
    "skin": ("skin.vert", "skin.frag"),
    "cloth": ("skin.vert", "cloth.frag"),
    "eye": ("eye.vert", "eye.frag"),
    "oral": ("oral.vert", "oral.frag"),
    "lash": ("lash.vert", "lash.frag"),
    "hair": ("hair.vert", "hair.frag"),
    "hair_depth": ("hair.vert", "hair_depth.frag"),
    "skin_shadow": ("skin.vert", "depth.frag"),
    "hair_shadow": ("hair.vert", "depth.frag"),
    "skin_number": ("skin.vert", "nothing.frag"),
    "hair_number": ("hair.vert", "hair_number.frag"),
    "finish": ("screen.vert", "finish.frag"),
}
_SKIN = "place:3 normal:3"
_SKIN_STILL = "canonical:3 masks:4 shade:2 flush:3"
_STRAND = "place:3 along:3 strand:4"


class Renderer:
    """Pictures of size x size pixels. One identity at a time; used by the thread that made it."""

    def __init__(self, size: int) -> None:
        """Raises RendererError when OpenGL is missing."""
        self._context = context = open_context()
        self._size, self._large = size, size * _SUPERSAMPLING
        self._topology = Topology(load_head())
        self._programs = {name: Drawable(context, *files) for name, files in _PROGRAMS.items()}
        large = (self._large, self._large)
        self._head_picture = context.texture(large, 4, dtype="f2")
        self._head_target = context.framebuffer(self._head_picture, context.depth_renderbuffer(large))
        self._target = context.simple_framebuffer((size, size), 3)
        self._shadow_map = context.depth_texture((_SHADOWS, _SHADOWS))
        self._shadow_map.compare_func = "<="
        self._shadow_map.repeat_x = self._shadow_map.repeat_y = False
        self._shadow_target = context.framebuffer(depth_attachment=self._shadow_map)
        corners = floats(context, np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]))
        self._finish = self._programs["finish"].mesh([(corners, "corner:2")])
        sphere, triangles = _sphere()
        self._eye = self._programs["eye"].mesh([(floats(context, sphere), "place:3")], triangles)
        self._identity: Identity | None = None
        self._owned: list[moderngl.Buffer | moderngl.VertexArray | moderngl.Texture] = []
        """What belongs to the identity and is released with it."""

    def load(self, seed: int) -> None:
        """Become the identity of a seed; takes seconds, unless it is already."""
        if self._identity is not None and self._identity.seed == seed:
            return
        for thing in self._owned:
            thing.release()
        self._owned.clear()
        self._identity = identity = draw_identity(seed)
        # Shape, hair and skin draw from one generator, in this order.
        rng = np.random.default_rng(seed + 77)
        topology = self._topology
        self._shape = shape = Shape(topology, identity, rng)
        hair = grow(
            identity.hair_style,
            rng,
            shape.skin,
            shape.normals,
            topology.canonical,
            topology.skin.triangles,
            topology.masks[:, 2],
        )
        self._set_colours(identity, hair)
        self._load_skin()
        self._load_hair(hair)
        self._load_oral()
        self._load_textures(identity, rng)
        self._set_light(identity)
        self._prune(hair)

    def render(self, pose: Pose) -> NDArray[np.uint8]:
        """A picture [size, size, 3], RGB. `load` must have been called."""
        context, shape = self._context, self._shape
        posed = shape.posed(pose.arkit, pose.tongue)
        self._skin_buffer.write(_pack(posed.skin, posed.skin_normals))
        self._oral_buffer.write(_pack(posed.oral, posed.oral_normals))
        self._lash_buffer.write(_pack(posed.lashes))
        for name in _POSED:
            self._programs[name].set(head_rotation=rotation(pose.rot), head_shift=pose.trn, body_shift=pose.body)
        for name in ("skin", "oral"):
            self._programs[name].set(mouth_open=mouth_opening(pose.arkit))

        context.enable_only(context.DEPTH_TEST)
        context.depth_func = "<"
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        self._skin_shadow.render()
        self._hair_shadow.render()

        self._head_target.use()
        self._head_target.clear(depth=1.0)
        self._shadow_map.use(_SHADOW_UNIT)
        self._detail.use(_DETAIL_UNIT)
        self._relief.use(_RELIEF_UNIT)
        context.enable(context.CULL_FACE)
        self._skin.render()
        self._cloth.render()
        context.disable(context.CULL_FACE)
        self._render_eyes(pose)
        self._oral.render()
        self._render_hair()
        self._render_lashes()

        self._target.use()
        context.disable(context.DEPTH_TEST)
        self._head_picture.use(_HEAD_UNIT)
        self._backdrop.use(_BACKDROP_UNIT)
        self._finish.render(context.TRIANGLE_STRIP)
        picture = np.frombuffer(self._target.read(components=3), np.uint8)
        return np.ascontiguousarray(picture.reshape(self._size, self._size, 3)[::-1])

    def _render_eyes(self, pose: Pose) -> None:
        yaw, pitch = pose.gaze
        gaze = rotation(np.array([-pitch, 0, 0])) @ rotation(np.array([0, yaw, 0]))
        for (centre, radius), side in zip(self._shape.eyes, SIDES, strict=True):
            blink, wide, squint, down = (
                float(pose.arkit[INDEX[name + side]]) for name in ("eyeBlink", "eyeWide", "eyeSquint", "eyeLookDown")
            )
            upper_lid = 0.42 + 0.25 * wide - blink - 0.15 * squint - 0.35 * down
            self._programs["eye"].set(centre=centre, radius=0.99 * radius, gaze=gaze, lids=(upper_lid, -0.42))
            self._eye.render()

    def _render_hair(self) -> None:
        """Depths first, then each pixel's foremost strand alone is shaded."""
        self._head_target.color_mask = False, False, False, False
        self._hair_depth.render()
        self._head_target.color_mask = True, True, True, True
        self._context.depth_func = "=="
        self._hair.render()
        self._context.depth_func = "<"

    def _render_lashes(self) -> None:
        context = self._context
        context.enable(context.BLEND)
        context.blend_func = context.SRC_ALPHA, context.ONE_MINUS_SRC_ALPHA
        self._head_target.depth_mask = False
        self._lashes.render()
        self._head_target.depth_mask = True
        context.disable(context.BLEND)

    def _buffer(self, values: Array) -> moderngl.Buffer:
        buffer = floats(self._context, values)
        self._owned.append(buffer)
        return buffer

    def _mesh(
        self, name: str, buffers: list[tuple[moderngl.Buffer, str]], indices: NDArray[np.int32]
    ) -> moderngl.VertexArray:
        mesh = self._programs[name].mesh(buffers, indices.ravel())
        self._owned += [mesh.index_buffer, mesh]
        return mesh

    def _load_skin(self) -> None:
        topology, shape = self._topology, self._shape
        triangles = topology.skin.triangles
        open_sky = openness(self._context, shape.skin, shape.normals, triangles)
        for _ in range(2):
            open_sky = topology.skin.blur(open_sky)
        still = np.column_stack(
            [topology.canonical, topology.masks, open_sky.clip(0.05, 1), topology.follows, flush(topology.canonical)]
        )
        self._skin_buffer = self._buffer(np.hstack([shape.skin, shape.normals]))
        buffers = [(self._skin_buffer, _SKIN), (self._buffer(still), _SKIN_STILL)]
        height = topology.canonical[triangles][:, :, 1]
        turned_away = ~_faces_front(shape.skin, topology.canonical, triangles)
        self._skin = self._mesh("skin", buffers, triangles[(height.max(1) > _FACE_ABOVE) & ~turned_away])
        self._cloth = self._mesh("cloth", buffers, triangles[(height.min(1) < _CLOTH_BELOW) & ~turned_away])
        self._skin_shadow = self._mesh("skin_shadow", buffers, triangles)
        self._skin_number = self._mesh("skin_number", buffers, triangles)

    def _load_hair(self, hair: Hair) -> None:
        bands, vertices = ribbons(hair)
        self._hair_buffer = self._buffer(bands)
        self._strand_vertices = vertices
        self._programs["hair_number"].set(vertices=vertices)
        # A third of the strands, wider and coarser, is enough for shadows.
        points = hair.points.shape[1]
        bands, vertices = ribbons(hair, every=3, skip=2 if points > 4 else 1, wider=2.2)
        self._hair_shadow = self._mesh(
            "hair_shadow",
            [(self._buffer(bands), _STRAND)],
            ribbon_triangles(np.arange(len(hair.points[::3])), vertices),
        )

    def _load_oral(self) -> None:
        topology, shape = self._topology, self._shape
        kinds = self._buffer(topology.oral_kinds)
        self._oral_buffer = self._buffer(np.zeros((len(topology.oral_kinds), 6)))
        self._oral = self._mesh("oral", [(self._oral_buffer, _SKIN), (kinds, "kind:3")], topology.oral_triangles)
        self._lash_buffer = self._buffer(np.zeros((len(topology.lashes), 3)))
        along = self._buffer(shape.lash_places())
        self._lashes = self._mesh("lash", [(self._lash_buffer, "place:3"), (along, "along:2")], topology.lash_triangles)

    def _load_textures(self, identity: Identity, rng: np.random.Generator) -> None:
        face = self._topology.head.vertices[self._topology.skin.ids]
        painted = paint(rng, identity, face)
        self._detail, self._relief = self._texture(painted.detail), self._texture(painted.relief)
        backdrop = backdrop_for(identity)
        self._backdrop = self._context.texture(backdrop.shape[1::-1], 3, backdrop.tobytes(), dtype="f4")
        self._owned.append(self._backdrop)

    def _texture(self, pixels: NDArray[np.uint8]) -> moderngl.Texture:
        """Around the head: x repeats, y does not."""
        context = self._context
        height, width, channels = pixels.shape
        texture = context.texture((width, height), channels, pixels.tobytes())
        texture.build_mipmaps()
        texture.filter = context.LINEAR_MIPMAP_LINEAR, context.LINEAR
        texture.repeat_y = False
        self._owned.append(texture)
        return texture

    def _set_light(self, identity: Identity) -> None:
        """Light, camera and what else stays the same from frame to frame, for all programs."""
        projections, colours = projections_for(identity), lights_for(identity)
        for name, program in self._programs.items():
            program.set(**colours)
            program.set(
                camera=CAMERA,
                view_projection=projections.light if name in ("skin_shadow", "hair_shadow") else projections.view,
                light_projection=projections.light,
                pivot=self._shape.pivot,
                shadow_map=_SHADOW_UNIT,
                detail=_DETAIL_UNIT,
                relief=_RELIEF_UNIT,
                head=_HEAD_UNIT,
                backdrop=_BACKDROP_UNIT,
                texel=1 / self._large,
                lip_front=self._topology.lip_front,
            )

    def _set_colours(self, identity: Identity, hair: Hair) -> None:
        colour = np.array(identity.hair)
        self._programs["skin"].set(
            shell=0.0,
            skin_colour=identity.skin,
            lip_colour=identity.lips,
            hair_colour=colour,
            lid_colour=(0.90, 0.80, 0.80) if identity.is_feminine else (0.97, 0.93, 0.93),
            ruddiness=identity.ruddiness,
            oiliness=identity.oiliness,
            lip_gloss=identity.lip_gloss,
        )
        self._programs["cloth"].set(
            shell=_CLOTH_THICKNESS, cloth_colour=identity.cloth, hem_colour=identity.hem, neckline=identity.neckline
        )
        self._programs["eye"].set(iris_colour=identity.iris)
        self._programs["lash"].set(lash_colour=0.25 * colour, density=identity.lash_density)
        self._programs["hair"].set(
            hair_colour=colour, sheen_colour=0.6 * colour + 0.03, centre=hair.centre - np.array([0, 0.25, 0])
        )

    def _prune(self, hair: Hair) -> None:
        """Leave out strands that no pose shows: most lie under others."""
        buffers = [(self._hair_buffer, _STRAND)]
        count, vertices = len(hair.points), self._strand_vertices
        everything = self._mesh("hair_number", buffers, ribbon_triangles(np.arange(count), vertices))
        programs = [self._programs["skin_number"], self._programs["hair_number"]]
        seen = ribbon_triangles(
            strands_in_sight(self._context, self._skin_number, everything, programs, count), vertices
        )
        self._hair = self._mesh("hair", buffers, seen)
        self._hair_depth = self._mesh("hair_depth", buffers, seen)


def _faces_front(skin: Array, canonical: Array, triangles: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[t] whether a triangle can be seen in any pose; those at the front are kept, since the mouth turns them."""
    a, b, c = (skin[triangles[:, k]] for k in range(3))
    return np.asarray((unit(np.cross(b - a, c - a))[:, 2] > -0.55) | (canonical[triangles].mean(1)[:, 2] > 0.9))


def _sphere() -> tuple[Array, NDArray[np.int32]]:
    """Vertices on the unit sphere, finest at +z, where the iris is, and triangles' corners."""
    rings, around = 40, 49
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, around))
    places = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)
    first = (np.arange(around - 1)[:, None] * rings + np.arange(rings - 1)).ravel()
    corners = np.stack([first + k for k in (0, 1, rings, 1, rings + 1, rings)], -1)
    return places.reshape(-1, 3), corners.ravel().astype(np.int32)


def _pack(*columns: Array) -> bytes:
    return np.hstack(columns).astype(np.float32).tobytes()
