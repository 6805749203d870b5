"""Draws a machined part and a woven fabric, with and without structural defects.

The unit of length is 1/128 of the image, with x from -64 to 64 to the right and y from -64 to 64 down, so that a scene looks the
same at every size. Shapes are signed distances (negative inside); edges are one pixel soft.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

Array = np.ndarray
LIGHT = np.array([-0.6, -0.8])  # from the upper left
SCREWS = ((-45.0, -36.0), (45.0, -36.0), (-45.0, 36.0), (45.0, 36.0))
LABEL = (23.0, -7.0)
BORE = (-18.0, 0.0)
SLOT = (23.0, 26.0)
PLATE = (56.0, 47.0, 8.0)  # half width, half height, corner radius
_BARS = (2.0, 4.5, 9.0, 11.5, 14.0, 18.5, 21.0, 25.5)  # left edges of the label's bars
_BAR_WIDTHS = (1.6, 3.2, 1.6, 1.6, 3.2, 1.6, 3.2, 1.6)


@dataclass
class Scene:
    """What differs between two good images: position, light, texture and noise.

    Attributes:
        size: pixels along each side.
        shift: offset of the part in units.
        angle: rotation of the part in radians.
        gain: brightness of the light.
        slope: change of brightness from the middle to the edge of the image, along x and y.
        tint: gain of each channel.
        texture_seed: seed of the grain of the material.
        noise: (size, size, 3) float32 noise of the camera.
    """

    size: int
    shift: Array
    angle: float
    gain: float
    slope: Array
    tint: Array
    texture_seed: int
    noise: Array = field(repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, noise_std: float) -> "Scene":
        return cls(
            size=size,
            shift=rng.uniform(-1.5, 1.5, 2),
            angle=float(rng.uniform(-0.012, 0.012)),
            gain=float(rng.uniform(0.95, 1.05)),
            slope=rng.uniform(-0.04, 0.04, 2),
            tint=rng.uniform(0.99, 1.01, 3),
            texture_seed=int(rng.integers(2**31)),
            noise=rng.normal(0.0, noise_std, (size, size, 3)).astype(np.float32),
        )

    @property
    def pixel(self) -> float:
        """Length of a pixel in units."""
        return 128 / self.size

    def grid(self) -> tuple[Array, Array]:
        """x and y of the pixel centres in units, in the image's own frame."""
        axis = ((np.arange(self.size) + 0.5) * self.pixel - 64).astype(np.float32)
        x, y = np.meshgrid(axis, axis)
        return x, y

    def part_grid(self) -> tuple[Array, Array]:
        """x and y in the frame of the part."""
        return rotate(*self.grid(), self.angle, self.shift)

    def expose(self, surface: Array) -> Array:
        """Adds light, optics and camera: (size, size, 3) reflectance -> (size, size, 3) float image in [0, 1]."""
        x, y = self.grid()
        light = self.gain * (1 + self.slope[0] * x / 64 + self.slope[1] * y / 64)
        image = surface * light[..., None] * self.tint
        image = ndimage.gaussian_filter(image, (0.45 / self.pixel, 0.45 / self.pixel, 0))
        return np.clip(image + self.noise, 0, 1)


@dataclass(frozen=True)
class Structure:
    """Defects in how a part is put together; the default has none.

    Attributes:
        absent: pieces that are missing: "label", "bushing" or "screw0" to "screw3".
        label_shift, label_angle: displacement of the label in units and radians.
        screw_shift: displacement of each screw.
        chip: (x, y, radius, seed) of a piece broken off, or None.
        pull: fabric only, (x, y, radius, dx, dy): threads pulled aside, or None.
        hole: fabric only, (x, y, radius, seed), or None.
    """

    absent: frozenset[str] = frozenset()
    label_shift: tuple[float, float] = (0.0, 0.0)
    label_angle: float = 0.0
    screw_shift: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * 4
    chip: tuple[float, float, float, int] | None = None
    pull: tuple[float, float, float, float, float] | None = None
    hole: tuple[float, float, float, int] | None = None


def rotate(x: Array, y: Array, angle: float, origin) -> tuple[Array, Array]:
    """Coordinates in a frame that lies at `origin`, turned by `angle`."""
    x, y = x - origin[0], y - origin[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def box(x: Array, y: Array, half_width: float, half_height: float, radius: float = 0.0) -> Array:
    """Signed distance from a rectangle around the origin, whose corners are rounded."""
    dx, dy = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - radius


def outline(x: Array, y: Array, radius: float, seed: int, roughness: float = 0.16) -> Array:
    """Roughly signed distance from an irregular blob around the origin."""
    rng = np.random.default_rng(seed)
    theta = np.arctan2(y, x)
    wobble = sum(
        rng.normal(0, roughness / order) * np.cos(order * theta + rng.uniform(0, 2 * np.pi)) for order in range(2, 7)
    )
    return np.hypot(x, y) - radius * (1 + wobble)


def paint(surface: Array, distance: Array, colour, pixel: float, opacity: float | Array = 1.0) -> None:
    """Paints a shape over a surface, in place, with edges one pixel soft."""
    cover = np.clip(0.5 - distance / pixel, 0, 1) * opacity
    surface += cover[..., None] * (np.asarray(colour, np.float32) - surface)


def bevel(distance: Array, width: float, pixel: float) -> Array:
    """Brightness of a rounded rim `width` units wide inside a shape: positive towards the light."""
    slope_y, slope_x = np.gradient(distance, pixel)
    rim = np.clip(1 + distance / width, 0, 1) * (distance < pixel)
    return rim * (slope_x * LIGHT[0] + slope_y * LIGHT[1])


def grain(scene: Scene, along: float, across: float, offset: int = 0) -> Array:
    """(size, size) noise of unit variance, smooth over `along` units in x and `across` units in y."""
    rng = np.random.default_rng([scene.texture_seed, offset])
    noise = ndimage.gaussian_filter(
        rng.normal(size=(scene.size, scene.size)).astype(np.float32),
        (across / scene.pixel, along / scene.pixel),
        mode="wrap",
    )
    return noise / noise.std()


def render_part(scene: Scene, structure: Structure) -> tuple[Array, Array]:
    """Draws a brushed plate with screws, a brass bushing, a slot and a label on a dark mat.

    Returns:
        (size, size, 3) reflectance, and (size, size) in [0, 1] where there is a surface that can be damaged.
    """
    x, y = scene.part_grid()
    pixel = scene.pixel
    plate = box(x, y, *PLATE)
    if structure.chip:
        cx, cy, radius, seed = structure.chip
        plate = np.maximum(plate, -outline(x - cx, y - cy, radius, seed))
    mat = 0.17 + 0.006 * grain(scene, 1.2, 1.2, 1)
    surface = mat[..., None] * np.array([0.92, 1.0, 1.1], np.float32)
    shadow = np.clip(0.5 - (box(x - 2.5, y - 3.5, *PLATE)) / 7, 0, 1)
    surface *= (1 - 0.55 * shadow)[..., None]

    brushed = 0.63 + 0.010 * grain(scene, 14, 0.4, 2) + 0.05 * (x * LIGHT[0] + y * LIGHT[1]) / 64
    metal = brushed + 0.22 * bevel(plate, 2.6, pixel)
    paint(surface, plate, metal[..., None] * np.array([0.98, 1.0, 1.03], np.float32), pixel)

    solid = np.clip(0.5 - plate / pixel, 0, 1)
    for piece in (_draw_slot, _draw_bore, _draw_label, _draw_screws):
        solid = np.minimum(solid, piece(surface, x, y, pixel, structure))
    return surface, solid


def _recess(surface: Array, distance: Array, pixel: float, depth: float = 0.09) -> Array:
    """Draws a hole, dark and with its far wall lit; returns (H, W) in [0, 1], 0 where there is no surface any more."""
    shade = depth - 0.10 * bevel(distance, 3.0, pixel)
    paint(surface, distance, np.repeat(shade[..., None], 3, axis=2), pixel)
    return np.clip(0.5 + distance / pixel, 0, 1)


def _draw_slot(surface: Array, x: Array, y: Array, pixel: float, structure: Structure) -> Array:
    outer = box(x - SLOT[0], y - SLOT[1], 17, 7.5, 7.5)
    paint(surface, outer, (0.55, 0.56, 0.58), pixel, 0.7)
    return _recess(surface, box(x - SLOT[0], y - SLOT[1], 13, 4.2, 4.2), pixel)


def _draw_bore(surface: Array, x: Array, y: Array, pixel: float, structure: Structure) -> Array:
    radius = np.hypot(x - BORE[0], y - BORE[1])
    seat = radius - 22.5
    rim = 0.52 - 0.16 * bevel(seat, 2.0, pixel)
    paint(surface, seat, rim[..., None] * np.ones(3, np.float32), pixel)
    if "bushing" in structure.absent:
        return _recess(surface, radius - 19.5, pixel)
    ring = 0.62 + 0.20 * bevel(radius - 19.5, 2.4, pixel) - 0.20 * bevel(radius - 13.0, 2.0, pixel)
    paint(surface, radius - 19.5, ring[..., None] * np.array([1.15, 0.92, 0.50], np.float32), pixel)
    return _recess(surface, radius - 11.5, pixel)


def _draw_label(surface: Array, x: Array, y: Array, pixel: float, structure: Structure) -> Array:
    if "label" in structure.absent:
        return np.ones_like(x)
    centre = (LABEL[0] + structure.label_shift[0], LABEL[1] + structure.label_shift[1])
    u, v = rotate(x, y, structure.label_angle, centre)
    paint(surface, box(u - 0.6, v - 0.8, 18, 14, 1.5), (0.25, 0.25, 0.26), pixel, 0.45)  # its shadow
    paint(surface, box(u, v, 18, 14, 1.5), (0.88, 0.88, 0.85), pixel)
    paint(surface, box(u, v + 9.8, 15, 2.0), (0.15, 0.32, 0.55), pixel)
    for left, width in zip(_BARS, _BAR_WIDTHS, strict=True):
        paint(surface, box(u + 14 - left - width / 2, v + 0.1, width / 2, 5.6), (0.13, 0.13, 0.14), pixel)
    paint(surface, box(u + 4, v - 9.6, 10.5, 1.2), (0.35, 0.35, 0.36), pixel)
    return np.ones_like(x)


def _draw_screws(surface: Array, x: Array, y: Array, pixel: float, structure: Structure) -> Array:
    solid = np.ones_like(x)
    for number, (cx, cy) in enumerate(SCREWS):
        dx, dy = structure.screw_shift[number]
        if f"screw{number}" in structure.absent or dx or dy:
            paint(surface, np.hypot(x - cx, y - cy) - 7.2, (0.58, 0.58, 0.59), pixel, 0.6)  # mark of the washer
            solid = np.minimum(solid, _recess(surface, np.hypot(x - cx, y - cy) - 3.8, pixel))
        if f"screw{number}" in structure.absent:
            continue
        u, v = x - cx - dx, y - cy - dy
        radius = np.hypot(u, v)
        paint(surface, np.hypot(u - 0.8, v - 1.0) - 7.2, (0.2, 0.2, 0.21), pixel, 0.5)  # shadow
        washer = 0.74 + 0.18 * bevel(radius - 7.2, 1.4, pixel)
        paint(surface, radius - 7.2, washer[..., None] * np.ones(3, np.float32), pixel)
        head = 0.33 + 0.20 * bevel(radius - 5.3, 2.4, pixel)
        paint(surface, radius - 5.3, head[..., None] * np.array([0.95, 0.98, 1.06], np.float32), pixel)
        hexagon = np.max([u * np.cos(a) + v * np.sin(a) for a in np.arange(6) * np.pi / 3], axis=0) - 2.5
        _recess(surface, hexagon, pixel, 0.06)
    return solid


def render_fabric(scene: Scene, structure: Structure) -> tuple[Array, Array]:
    """Draws a plain weave of two yarns; arguments and result as of `render_part`."""
    x, y = scene.grid()
    rng = np.random.default_rng([scene.texture_seed, 3])
    phase = rng.uniform(0, 16, 2)
    x, y = rotate(x, y, scene.angle * 1.5, (0.0, 0.0))
    # Yarns are never laid quite straight.
    x = x + phase[0] + 0.35 * grain(scene, 10, 20, 4)
    y = y + phase[1] + 0.35 * grain(scene, 20, 10, 5)
    if structure.pull:
        cx, cy, radius, dx, dy = structure.pull
        gx, gy = scene.grid()
        bump = np.exp(-((gx - cx) ** 2 + (gy - cy) ** 2) / (2 * radius**2))
        x, y = x + dx * bump, y + dy * bump
    pitch = 8.0
    column, row = np.floor(x / pitch).astype(int), np.floor(y / pitch).astype(int)
    across_x, across_y = 2 * (x / pitch - column) - 1, 2 * (y / pitch - row) - 1
    warp_on_top = (column + row) % 2 == 0
    round_yarn = np.where(warp_on_top, 1 - across_x**2, 1 - across_y**2)  # dark at the yarn's flanks
    arch = np.where(warp_on_top, 1 - across_y**2, 1 - across_x**2)  # dark where it dips under the next
    tone = rng.normal(1, 0.02, 64).astype(np.float32)
    level = np.where(warp_on_top, tone[column % 32], tone[32 + row % 32])
    shade = level * (0.34 + 0.40 * np.sqrt(np.clip(round_yarn, 0, 1)) + 0.26 * arch)
    shade *= 1 + 0.02 * grain(scene, 0.6, 0.6, 6)
    warp, weft = np.array([0.38, 0.46, 0.60], np.float32), np.array([0.47, 0.53, 0.62], np.float32)
    surface = shade[..., None].astype(np.float32) * np.where(warp_on_top[..., None], warp, weft)
    solid = np.ones_like(surface[..., 0])
    if structure.hole:
        cx, cy, radius, seed = structure.hole
        gx, gy = scene.grid()
        hole = outline(gx - cx, gy - cy, radius, seed, 0.22)
        paint(surface, hole - 1.2, (0.72, 0.72, 0.69), scene.pixel, 0.55)  # frayed ends
        paint(surface, hole, (0.08, 0.08, 0.09), scene.pixel)
        solid = np.clip(0.5 + hole / scene.pixel, 0, 1)
    return surface, solid
