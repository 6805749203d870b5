"""Defects of the generated images: most drawn at random, so that no two are alike, and four that recur."""

from collections.abc import Callable

import numpy as np

from iltm_anomaly.synthetic.rendering import LIGHT, PLATE, Array, Scene, Structure, outline, paint

Damage = Callable[[Scene, Array, Array], None]
"""Changes a (size, size, 3) surface in place, given the scene and (size, size) in [0, 1], 1 where the surface is solid."""

DEFECT_TYPES = ("blob", "dent", "misplaced", "missing", "scratch")
"""Defects of which no two are alike."""

MACHINE_FAULTS = {
    "no_label": Structure(absent=frozenset({"label"})),
    "no_screw": Structure(absent=frozenset({"screw0"})),
    "label_askew": Structure(label_shift=(-6.0, 9.0), label_angle=0.12),
    "chipped_corner": Structure(chip=(52.0, 30.0, 11.0, 7)),
}
"""Faults of a machine that assembles parts, and makes each of them in the same way every time."""


def draw_defect(kind: str, defect: str, rng: np.random.Generator) -> tuple[Structure, Damage | None]:
    """Draws one defect.

    Returns:
        How the part is put together, and what damages its surface afterwards (None: nothing).
    """
    if kind == "part" and defect in MACHINE_FAULTS:
        return MACHINE_FAULTS[defect], None
    reach = (PLATE[0] - 6, PLATE[1] - 6) if kind == "part" else (54.0, 54.0)
    place = (float(rng.uniform(-reach[0], reach[0])), float(rng.uniform(-reach[1], reach[1])))
    if defect == "scratch":
        return Structure(), _scratch(place, rng)
    if defect == "blob":
        return Structure(), _blob(place, rng)
    if defect == "dent":
        return Structure(), _dent(place, rng)
    if kind == "part":
        return (_missing_piece(rng) if defect == "missing" else _misplaced_piece(rng)), None
    if defect == "missing":
        return Structure(hole=(*place, float(rng.uniform(4, 10)), int(rng.integers(2**31)))), None
    direction = rng.uniform(0, 2 * np.pi)
    pull = rng.uniform(3.5, 7)
    radius = float(rng.uniform(6, 13))
    return Structure(pull=(*place, radius, pull * np.cos(direction), pull * np.sin(direction))), None


def _missing_piece(rng: np.random.Generator) -> Structure:
    what = rng.choice(["chip", "chip", "screw", "screw", "label", "bushing"])
    if what == "screw":
        count = 1 + int(rng.random() < 0.25)
        return Structure(absent=frozenset(f"screw{number}" for number in rng.choice(4, count, replace=False)))
    if what != "chip":
        return Structure(absent=frozenset({str(what)}))
    along = rng.uniform(-1, 1)
    if rng.random() < 0.5:
        place = (along * PLATE[0], float(rng.choice([-1, 1])) * PLATE[1])
    else:
        place = (float(rng.choice([-1, 1])) * PLATE[0], along * PLATE[1])
    return Structure(chip=(*place, float(rng.uniform(5, 12)), int(rng.integers(2**31))))


def _misplaced_piece(rng: np.random.Generator) -> Structure:
    direction = rng.uniform(0, 2 * np.pi)
    towards = np.array([np.cos(direction), np.sin(direction)])
    if rng.random() < 0.55:
        shift = rng.uniform(1, 6) * towards
        angle = float(rng.choice([-1, 1]) * rng.uniform(0.10, 0.45))
        return Structure(label_shift=(float(shift[0]), float(shift[1])), label_angle=angle)
    shifts = [(0.0, 0.0)] * 4
    shift = rng.uniform(3, 6) * towards
    shifts[int(rng.integers(4))] = (float(shift[0]), float(shift[1]))
    return Structure(screw_shift=tuple(shifts))


def _scratch(place: tuple[float, float], rng: np.random.Generator) -> Damage:
    heading, length = rng.uniform(0, np.pi), rng.uniform(16, 48)
    bend, width = rng.normal(0, 0.15) * length, rng.uniform(0.5, 1.1)
    strength = rng.uniform(0.22, 0.42) * rng.choice([-1, 1], p=[0.6, 0.4])
    twin = rng.uniform(2.5, 5) if rng.random() < 0.3 else None
    steps = np.linspace(-0.5, 0.5, 97)
    wear = np.clip(0.75 + 0.3 * np.interp(steps, np.linspace(-0.5, 0.5, 9), rng.normal(size=9)), 0.3, 1.1)
    wear *= np.clip((0.5 - np.abs(steps)) * 8, 0, 1)  # fades out at both ends

    def damage(scene: Scene, surface: Array, solid: Array) -> None:
        x, y = scene.grid()
        for offset, share in ((0.0, 1.0), (twin, 0.6)):
            if offset is None:
                continue
            side = bend * (1 - 4 * steps**2) + offset
            px = place[0] + length * steps * np.cos(heading) - side * np.sin(heading)
            py = place[1] + length * steps * np.sin(heading) + side * np.cos(heading)
            depth = np.zeros_like(x)
            for cx, cy, amount in zip(px, py, wear, strict=True):
                squared = (x - cx) ** 2 + (y - cy) ** 2
                np.maximum(depth, amount * np.exp(-squared / (2 * width**2)), out=depth)
            surface += (strength * share * depth * solid)[..., None]
            # The raised edge beside the groove catches the light.
            lit = np.roll(depth, round(1.6 * width / scene.pixel), axis=0) - depth
            surface -= (0.35 * strength * share * np.clip(lit, 0, 1) * solid)[..., None]

    return damage


def _blob(place: tuple[float, float], rng: np.random.Generator) -> Damage:
    colours = [(0.14, 0.10, 0.07), (0.30, 0.19, 0.10), (0.10, 0.11, 0.12), (0.45, 0.12, 0.09), (0.12, 0.24, 0.16)]
    colour = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.8, 1.3)
    opacity = float(rng.uniform(0.6, 0.92))
    radius = rng.uniform(3.0, 8.5)
    spots = [(*place, radius, int(rng.integers(2**31)))]
    for _ in range(int(rng.integers(0, 4))):
        direction, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.3, 2.2)
        x, y = place[0] + away * np.cos(direction), place[1] + away * np.sin(direction)
        spots.append((x, y, radius * rng.uniform(0.12, 0.3), int(rng.integers(2**31))))
    softness = rng.uniform(1.0, 2.5)

    def damage(scene: Scene, surface: Array, solid: Array) -> None:
        x, y = scene.grid()
        for cx, cy, spot_radius, seed in spots:
            distance = outline(x - cx, y - cy, spot_radius, seed)
            inner = 0.8 + 0.2 * np.clip(-distance / (0.5 * spot_radius), 0, 1)
            paint(surface, distance, colour, softness, opacity * inner * solid)
            shine = np.hypot(x - cx + 0.35 * spot_radius, y - cy + 0.4 * spot_radius) - 0.22 * spot_radius
            paint(surface, shine, (0.85, 0.85, 0.85), max(1.0, 0.3 * spot_radius), 0.35 * solid)

    return damage


def _dent(place: tuple[float, float], rng: np.random.Generator) -> Damage:
    radius, stretch, turn = rng.uniform(4.0, 8.0), rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    strength = rng.uniform(0.40, 0.65)

    def damage(scene: Scene, surface: Array, solid: Array) -> None:
        x, y = scene.grid()
        dx, dy = x - place[0], y - place[1]
        along = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
        across = (np.cos(turn) * dy - np.sin(turn) * dx) / (radius * stretch)
        height = -np.exp(-1.6 * (along**2 + across**2))
        slope_y, slope_x = np.gradient(height, scene.pixel)
        # A hollow: its wall away from the light is bright, the one towards it dark.
        light = (slope_x * LIGHT[0] + slope_y * LIGHT[1]) * radius
        surface *= (1 + (strength * light + 0.12 * height) * solid)[..., None]

    return damage
