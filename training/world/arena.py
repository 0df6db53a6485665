"""Writes the arena: a PWAD with one UDMF map, its pictures, its palette and its actors, all our own.

The actors are the player with the lantern, the wisps that it hits, and the braziers' flames.
"""

import functools
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.world import pictures, sprites
from training.world.paint import Picture, choose_palette, to_png

HALF = 512  # the courtyard reaches from -HALF to HALF map units both ways
CORNER = 150  # cut off each corner
WALL = 136  # height of the walls
SKY_HEIGHT = 512
LIP = 4  # room above a wall's top; the far side of this gap must stay hidden behind the wall's near edge
ALCOVE_HALF, ALCOVE_DEPTH = 130, 128
OUTSIDE = 760
PLAYER_RADIUS = 16
STEP = 24  # what a player climbs
EYE = 41  # of the player, above the floor

Point = tuple[float, float]


@dataclass(frozen=True)
class Pillar:
    """A solid column. Lengths in map units; four `sides` mean an upright square of half-width `radius`.

    A square with `longer` is a box, which reaches so much further in the east and in the west.
    """

    kind: str
    x: float
    y: float
    radius: float
    height: int
    sides: int
    longer: float = 0

    def outline(self) -> list[Point]:
        """Corners, clockwise; the first is due east, or north-east of a square."""
        if self.sides == 4:
            dx, dy = self.radius + self.longer, self.radius
            return [
                (self.x + dx, self.y + dy),
                (self.x + dx, self.y - dy),
                (self.x - dx, self.y - dy),
                (self.x - dx, self.y + dy),
            ]
        return _ring(self.x, self.y, self.radius, self.sides)

    def faces(self) -> list[float]:
        """Lengths of a square's or box's faces: west, south, east, north. None of a round one."""
        return [2 * self.radius, 2 * (self.radius + self.longer)] * 2 if self.sides == 4 else []


PILLARS = (
    Pillar("sandstone", -250, 200, 46, 190, 16),
    Pillar("obelisk", 235, 265, 40, 250, 4),
    Pillar("glazed", 255, -235, 54, 112, 8),
    Pillar("timber", -225, -275, 36, 165, 4),
    Pillar("drum", 20, -265, 60, 70, 16),
    Pillar("twin", -66, 335, 26, 150, 12),
    Pillar("twin", 66, 335, 26, 150, 12),
    Pillar("hedge", 130, -410, 20, 44, 4, longer=100),
    Pillar("hedge", -300, 380, 20, 44, 4, longer=100),
    Pillar("brazier", 150, 150, 16, 36, 8),
    Pillar("brazier", -430, 175, 16, 36, 8),
    Pillar("brazier", -430, -200, 16, 36, 8),
)
TOPS = {"hedge": "LEAVES", "brazier": "COALS"}  # the others stand too high to show theirs
DAIS, DAIS_STEP = (310.0, 30.0, 104.0), 16  # x, y, radius
BASIN, BASIN_STEP = (-300.0, -50.0, 96.0), -14
STRETCH = 1.2  # a map unit of height on the screen, in units of width
FLAME_TICS = 16  # of its four pictures
WISPS: tuple[Point, ...] = ((0, 150), (400, -120), (130, -330), (-340, -230), (-400, 250))  # where each sets out
DRIFTER_TYPE, FLAME_TYPE = 20001, 20002
WISP_HEIGHT = 24  # of what bounces; what is seen is larger
WISP_SPEED = 3.5  # map units per tic


def is_free(x: float, y: float, margin: float = 28.0) -> bool:
    """Whether a player can stand at (x, y) with `margin` map units between its centre and every wall and pillar."""
    if x < margin - HALF:  # only the alcove reaches that far west
        return x >= margin - HALF - ALCOVE_DEPTH and abs(y) <= ALCOVE_HALF - margin
    if max(abs(x), abs(y)) > HALF - margin or abs(x) + abs(y) > 2 * HALF - CORNER - margin * math.sqrt(2):
        return False
    for p in PILLARS:
        dx, dy = abs(x - p.x), abs(y - p.y)
        gap = max(dx - p.longer, dy) if p.sides == 4 else math.hypot(dx, dy)
        if gap < p.radius + margin:
            return False
    return True


def heights(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """How high the ground is at (x, y), in map units of width: walls and pillars are ground."""
    height = np.full(np.broadcast_shapes(x.shape, y.shape), WALL, np.float32)
    court = (np.maximum(abs(x), abs(y)) < HALF) & (abs(x) + abs(y) < 2 * HALF - CORNER)
    alcove = (x <= -HALF) & (x > -HALF - ALCOVE_DEPTH) & (abs(y) < ALCOVE_HALF)
    height[court | alcove] = 0
    shapes: list[tuple[list[Point], float]] = [(_ring(*DAIS, 16), DAIS_STEP), (_ring(*BASIN, 16), BASIN_STEP)]
    shapes += [(p.outline(), p.height) for p in PILLARS]
    for clockwise, rises in shapes:
        sides = zip(clockwise, clockwise[1:] + clockwise[:1], strict=True)
        within = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) <= 0 for (ax, ay), (bx, by) in sides]
        height[np.logical_and.reduce(within)] = rises
    return height * np.float32(STRETCH)


def flames() -> NDArray[np.float32]:
    """x, y and height of the middles of all flames [K, 3], in map units of width."""
    middle = sprites.FLAME_HEIGHT / sprites.TEXELS / 2
    braziers = [p for p in PILLARS if p.kind == "brazier"]
    return np.array([(p.x, p.y, p.height * STRETCH + middle) for p in braziers], np.float32)


def build_arena(path: Path) -> None:
    """Write the PWAD to `path`. The bytes are the same every time."""
    path.write_bytes(_wad())


def _ring(x: float, y: float, radius: float, sides: int) -> list[Point]:
    """Clockwise polygon whose first side begins due east."""
    turns = [2 * math.pi * k / sides for k in range(sides)]
    return [(round(x + radius * math.cos(t), 3), round(y - radius * math.sin(t), 3)) for t in turns]


@dataclass
class _Map:
    """UDMF text in the making.

    Every sector is fully lit, without darkening by distance: light is in the pictures. A line's front (its right side)
    is the room, its back the raised or sunken sector.
    """

    vertices: dict[Point, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)
    sectors: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)

    def vertex(self, point: Point) -> int:
        return self.vertices.setdefault(point, len(self.vertices))

    def sector(self, floor: int, ceiling: int, flat: str, extra: str = "") -> int:
        self.sectors.append(
            f'sector {{ heightfloor={floor}; heightceiling={ceiling}; texturefloor="{flat}"; textureceiling="F_SKY1";'
            f" lightlevel=255; {extra} }}"
        )
        return len(self.sectors) - 1

    def side(self, sector: int, texture: str = "-", offset: float = 0) -> int:
        self.sides.append(
            f'sidedef {{ sector={sector}; texturebottom="{texture}"; texturemiddle="-"; offsetx={round(offset)}; }}'
        )
        return len(self.sides) - 1

    def two_sided(
        self,
        a: Point,
        b: Point,
        front: int,
        back: int,
        texture: str = "-",
        offset: float = 0,
    ) -> None:
        """A line from a to b, `front` sector on its right; `texture` covers the step seen from the lower side."""
        v1, v2 = self.vertex(a), self.vertex(b)
        s1, s2 = self.side(front, texture, offset), self.side(back, texture, offset)
        self.lines.append(f"linedef {{ v1={v1}; v2={v2}; sidefront={s1}; sideback={s2}; twosided=true; }}")

    def one_sided(self, a: Point, b: Point, front: int) -> None:
        v1, v2, s1 = self.vertex(a), self.vertex(b), self.side(front)
        self.lines.append(f"linedef {{ v1={v1}; v2={v2}; sidefront={s1}; blocking=true; }}")

    def thing(self, kind: int, x: float, y: float, above: float = 0) -> None:
        """An actor of the editor's number `kind`, `above` map units over the floor."""
        skills = "skill1=true; skill2=true; skill3=true; skill4=true; skill5=true;"
        self.things.append(
            f"thing {{ x={x}; y={y}; height={above}; angle=90; type={kind}; {skills} single=true; coop=true; dm=true;"
            " class1=true; }"
        )

    def text(self) -> bytes:
        vertices = [f"vertex {{ x={x:.3f}; y={y:.3f}; }}" for x, y in self.vertices]
        return "\n".join(
            ['namespace = "zdoom";', *vertices, *self.lines, *self.sides, *self.sectors, *self.things, ""]
        ).encode()


def _textmap() -> bytes:
    m = _Map()
    # A flat is laid from the map's origin: half its width moves the middle of the picture there.
    yard = m.sector(0, SKY_HEIGHT, "YARD", "xpanningfloor=512.0; ypanningfloor=512.0;")
    alcove = m.sector(0, SKY_HEIGHT, "PLANKS")
    h, c, a, o = HALF, HALF - CORNER, ALCOVE_HALF, OUTSIDE
    back = -h - ALCOVE_DEPTH
    # The walls are one high sector around the room whose sky ceiling lies close above its top: there the sky begins.
    wall = m.sector(WALL, WALL + LIP, "PLANKS")
    outer = [(-o, o), (o, o), (o, -o), (-o, -o)]
    for k in range(4):
        m.one_sided(outer[k], outer[(k + 1) % 4], wall)
    points = [
        (-c, h),
        (c, h),
        (h, c),
        (h, -c),
        (c, -h),
        (-c, -h),
        (-h, -c),
        (-h, -a),
    ]  # clockwise, the room on the right
    names = ["NORTH", "CORNNE", "EAST", "CORNSE", "SOUTH", "CORNSW", "WEST"]
    points_west = [(-h, a), (-h, c), (-c, h)]
    for walk, pictured in ((points, names), (points_west, ["WEST", "CORNNW"])):
        for start, end, name in zip(walk, walk[1:], pictured, strict=False):
            m.two_sided(start, end, yard, wall, name)
    m.two_sided((-h, -a), (back, -a), alcove, wall, "NICHE")
    m.two_sided((back, -a), (back, a), alcove, wall, "GLOW")
    m.two_sided((back, a), (-h, a), alcove, wall, "NICHE")
    m.two_sided((-h, -a), (-h, a), yard, alcove)
    for index, p in enumerate(PILLARS):
        top = m.sector(p.height, SKY_HEIGHT, TOPS.get(p.kind, "PLANKS"))
        _loop(m, p.outline(), yard, top, f"PILLAR{index}", 0 if p.sides == 4 else _perimeter(p) / p.sides)
    for (x, y, radius), step, flat, edge in (
        (DAIS, DAIS_STEP, "DAIS", "RIMDAIS"),
        (BASIN, BASIN_STEP, "WATER", "RIMPOOL"),
    ):
        # Flats are laid from the map's origin: shift the picture (256 wide) so that its centre is the sector's.
        shift = f"xpanningfloor={(128 - x) % 256:.1f}; ypanningfloor={(128 + y) % 256:.1f};"
        inner = m.sector(step, SKY_HEIGHT, flat, shift)
        _loop(m, _ring(x, y, radius, 16), yard, inner, edge, 0)
    m.thing(1, 0, 0)
    for x, y in WISPS:
        m.thing(DRIFTER_TYPE, x, y, EYE - WISP_HEIGHT / 2)
    for p in PILLARS:
        if p.kind == "brazier":
            m.thing(FLAME_TYPE, p.x, p.y)
    return m.text()


def _loop(m: _Map, clockwise: list[Point], room: int, inner: int, texture: str, offset: float) -> None:
    """An island in the room, walked counter-clockwise from the last corner: the room is on each line's right."""
    corners = clockwise[::-1]
    for k, start in enumerate(corners):
        end = corners[(k + 1) % len(corners)]
        m.two_sided(start, end, room, inner, texture, offset)
        offset += math.dist(start, end)


def _perimeter(p: Pillar) -> int:
    corners = p.outline()
    return round(sum(math.dist(corners[k - 1], corners[k]) for k in range(len(corners))))


def _pictures() -> tuple[dict[str, Picture], dict[str, Picture], Picture]:
    """Wall pictures, flats and the sky, by lump name."""
    side, cut = 2 * (HALF - CORNER), round(CORNER * math.sqrt(2))
    flank = HALF - CORNER - ALCOVE_HALF
    walls = {
        "NORTH": pictures.north_wall(side, WALL),
        "EAST": pictures.east_wall(side, WALL),
        "SOUTH": pictures.south_wall(side, WALL),
        "WEST": pictures.west_wall(flank, WALL),
        "GLOW": pictures.alcove_back(2 * ALCOVE_HALF, WALL),
        "NICHE": pictures.alcove_side(ALCOVE_DEPTH, WALL),
        "RIMDAIS": pictures.rim(64, 16, pictures.TERRACOTTA),
        "RIMPOOL": pictures.rim(64, 16, pictures.STONE),
    }
    for name in ("NE", "NW", "SW", "SE"):
        walls[f"CORN{name}"] = pictures.corner_wall(cut, WALL, name)
    for index, p in enumerate(PILLARS):
        walls[f"PILLAR{index}"] = pictures.pillar(_perimeter(p), p.height, p.kind, p.faces())
    shadows = [(p.x, p.y, p.radius, float(p.height)) for p in PILLARS if not p.longer]
    boxes = [(p.x, p.y, p.radius + p.longer, p.radius, float(p.height)) for p in PILLARS if p.longer]
    flats = {
        "YARD": pictures.courtyard(1024, shadows, boxes, WALL),
        "PLANKS": pictures.planks(256),
        "DAIS": pictures.dais_floor(256),
        "WATER": pictures.water(256),
        "LEAVES": pictures.leaves(256),
        "COALS": pictures.coals(64),
    }
    return walls, flats, pictures.sky(1024, 240, 200)


MAPINFO = b"""gameinfo { playerclasses = "Walker" }
map MAP01 "Arena" { sky1 = "PANORAMA", 0  cluster = 1 }
"""

# The lantern flashes at once, on the frame that the key drives, and is ready again 8 tics later. The player has the
# flash in hand while there is light.
LANTERN = """actor Flash : Inventory {}
actor Walker : DoomPlayer { Player.DisplayName "Walker"  Player.StartItem "Lantern" }
actor Lantern : Weapon
{
  Weapon.SelectionOrder 1
  +WEAPON.NOALERT
  +WEAPON.AMMO_OPTIONAL
  States
  {
  Ready: LAMP A 1 A_WeaponReady
    loop
  Deselect: LAMP A 1 A_Lower
    loop
  Select: LAMP A 1 A_Raise
    loop
  Fire: LAMP B 1 bright A_GiveInventory("Flash")
    LAMP B 2 bright
    LAMP C 3 bright
    LAMP D 2 A_TakeInventory("Flash")
    LAMP D 0 A_ReFire
    goto Ready
  }
}
"""

# What moves a wisp: an unseen missile of the player's, hence one that passes through the player and pushes nobody; but
# it flees when the player comes near. Whatever else it hits "kills" it where it stands, and it goes on from there,
# mirrored in one axis, the other, or both, until it is free. The engine's own bouncing may throw things into walls.
_FLY = f"A_ChangeVelocity({WISP_SPEED}, 0, 0, CVF_RELATIVE | CVF_REPLACE)"
DRIFTER = f"""actor Drifter {DRIFTER_TYPE}
{{
  Radius 20
  Height {WISP_HEIGHT}
  +MISSILE
  +NOGRAVITY
  +SHOOTABLE
  +NODAMAGE
  var int user_bumps;
  States
  {{
  Spawn: TNT1 A 0
    TNT1 A 0 A_SetAngle(random(0, 359))
    TNT1 A 0 A_TransferPointer(AAPTR_PLAYER1, AAPTR_DEFAULT, AAPTR_DEFAULT, AAPTR_TARGET)
    TNT1 A 0 A_SpawnItemEx("Wisp", 0, 0, 0, 0, 0, 0, 0, SXF_TRANSFERPOINTERS | SXF_SETMASTER | SXF_ORIGINATOR)
  Free: TNT1 A 0 A_SetUserVar("user_bumps", 0)
    TNT1 A 0 A_JumpIfCloser(90, "Flee")
  Fly: TNT1 A 1 {_FLY}
    goto Free
  Flee: TNT1 A 0 A_FaceTarget
    TNT1 A 0 A_SetAngle(angle + 180)
    goto Fly
  Death: TNT1 A 0 A_SetAngle((user_bumps % 2 ? 180 + angle : -angle) + random(-8, 8))
    TNT1 A 1 A_SetUserVar("user_bumps", user_bumps + 1)
    TNT1 A 0 A_ChangeFlag("MISSILE", 1)
    TNT1 A 0 A_ChangeFlag("SHOOTABLE", 1)
    goto Fly
  }}
}}
"""

# What is seen of it. A wisp acts after the weapon, hence bursts in the flash's own tic. Nothing about it is hidden:
# each frame of the burst and each stage of the ember lasts for a fixed number of tics, and its angle, which does not
# show, says how far it is.
_STAGES = "BBCCDDDEEE" + "".join(10 * stage for stage in "FGHIJKL")


def _follow(tic: int) -> str:
    """A tic of the wisp where its drifter is, the `tic`-th since it burst."""
    angle = 360 * tic / (len(_STAGES) + 1)
    return f"bright A_Warp(AAPTR_MASTER, 0, 0, 0, {angle:.3f}, WARPF_NOCHECKPOSITION | WARPF_ABSOLUTEANGLE)"


_BURST = "\n    ".join(f"WISP {stage} 1 {_follow(tic)}" for tic, stage in enumerate(_STAGES, 1))
WISP = f"""actor Wisp
{{
  XScale {1 / sprites.TEXELS}
  YScale {1 / sprites.TEXELS / STRETCH:.4f}
  +NOINTERACTION
  States
  {{
  Spawn: WISP A 0
  Whole: WISP A 0 A_JumpIfInTargetInventory("Flash", 1, "Lit")
  Unhurt: WISP A 1 {_follow(0)}
    goto Whole
  Lit: WISP A 0 A_JumpIfTargetInLOS("Burst", 12, JLOSF_FLIPFOV, 1000)
    goto Unhurt
  Burst:
    {_BURST}
    goto Whole
  }}
}}
"""

# A brazier's fire: its base is a pillar of the map.
FLAME = f"""actor Flame {FLAME_TYPE}
{{
  XScale {1 / sprites.TEXELS}
  YScale {1 / sprites.TEXELS / STRETCH:.4f}
  +NOINTERACTION
  States
  {{
  Spawn: FLAM ABCD {FLAME_TICS // 4} bright
    loop
  }}
}}
"""


COLORMAP = bytes(range(256)) * 34
"""Every light level shows every colour as it is; the game's own table belongs to another palette."""


@functools.cache
def _wad() -> bytes:
    walls, flats, sky = _pictures()
    lantern = {f"LAMP{frame}0": sprites.lantern(*look) for frame, look in sprites.FRAMES.items()}
    wisp = {f"WISP{frame}0": picture for frame, picture in sprites.wisp().items()}
    flames = {f"FLAM{frame}0": sprites.flame(k) for k, frame in enumerate("ABCD")}
    # The floor and the sky fill most of every view: they count several times, to have smooth gradients.
    everything = [
        *walls.values(),
        *flats.values(),
        *[flats["YARD"]] * 6,
        *[sky] * 8,
        *(picture for picture, _ in [*lantern.values(), *wisp.values(), *flames.values()]),
    ]
    palette = choose_palette(everything)
    lumps: list[tuple[str, bytes]] = [
        ("PLAYPAL", palette * 14),
        ("COLORMAP", COLORMAP),
        ("MAPINFO", MAPINFO),
        ("DECORATE", (LANTERN + DRIFTER + WISP + FLAME).encode()),
    ]
    lumps += [("MAP01", b""), ("TEXTMAP", _textmap()), ("ENDMAP", b"")]
    lumps += [("TX_START", b"")]
    lumps += [(name, to_png(picture, palette)) for name, picture in {**walls, **flats, "PANORAMA": sky}.items()]
    lumps += [("TX_END", b""), ("S_START", b"")]
    origin = (sprites.WIDTH // 2 - 160, sprites.HEIGHT - 168)
    lumps += [(name, to_png(picture, palette, alpha, origin)) for name, (picture, alpha) in lantern.items()]
    middle = (sprites.WISP_SIZE // 2, (sprites.WISP_SIZE + WISP_HEIGHT * sprites.TEXELS) // 2)
    lumps += [(name, to_png(picture, palette, alpha, middle)) for name, (picture, alpha) in wisp.items()]
    foot = (sprites.FLAME_WIDTH // 2, sprites.FLAME_HEIGHT)
    lumps += [(name, to_png(picture, palette, alpha, foot)) for name, (picture, alpha) in flames.items()]
    lumps += [("S_END", b"")]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + directory
