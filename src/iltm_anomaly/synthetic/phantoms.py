"""Generated whole-body FDG-PET phantoms with known lesions: what `iltm-anomaly demo --volumes` trains on.

A phantom is a body from mid-thigh to the top of the head, made of ellipsoids with the uptake of their organs, seen with the blur
and the noise of a scanner. Subjects differ in height and girth, and in place, size and uptake of every organ. Lesions are lumpy
ellipsoids. Either they lie anywhere in lung, liver, lymph nodes, bone or soft tissue, and no two are alike; or all patients have
one disease, and lesions lie at the sites that it favours (`LYMPHOMA`).

Uptake values are body-weight SUV. Brain: 8.0 +- 2.2 in the cerebellum (Wang et al., Mol. Imaging Biol. 9(2), 2007). Liver: 1.9
+- 0.4 (Liu et al., Iran. J. Radiol. 16(2), 2019). The other means are taken from no table: they are round numbers near those of
one real scan (patient STS_001 of the TCIA collection Soft-tissue-Sarcoma: soft tissue 0.5 to 0.8, heart up to 10, bladder up to
64). Bladder, heart, kidneys and bowel vary most between subjects, with diet, hydration and the time of voiding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from iltm_anomaly.data.volume_files import write_volume
from iltm_anomaly.data.volume_grid import Volume, VolumeGrid
from iltm_anomaly.seeds import sample_seed

UPTAKE = {
    "fat": (0.35, 0.15),
    "muscle": (0.65, 0.15),
    "lung": (0.5, 0.15),
    "marrow": (1.2, 0.2),
    "blood": (1.6, 0.15),
    "liver": (1.9, 0.2),
    "spleen": (1.7, 0.2),
    "stomach": (1.6, 0.3),
    "bowel": (1.2, 0.35),
    "kidney": (3.5, 0.3),
    "heart": (3.5, 0.5),
    "brain": (8.0, 0.25),
    "bladder": (15.0, 0.5),
}
"""Of each organ: mean SUV, and standard deviation between subjects of its logarithm."""

SITES = ("lung", "liver", "node", "bone", "soft")
"""Tissues of lesions that may lie anywhere."""

LYMPHOMA = {
    "mediastinum": ((4, 5, 690), (26.0, 42.0)),
    "neck": ((32, 0, 830), (18.0, 28.0)),
    "axilla": ((150, -5, 745), (18.0, 32.0)),
    "retroperitoneum": ((0, -30, 385), (20.0, 36.0)),
    "groin": ((80, 40, 170), (18.0, 32.0)),
}
"""Sites of bulky nodes of one disease: centre (mm in a body of average build, origin mid-thigh), least and largest radius (mm).
Every patient has a lesion at the first one."""

MOST_LESIONS, MOST_RECURRING = 8, 3  # of a subject who has any: anywhere, and at the sites of `LYMPHOMA`
RADII = (14.0, 42.0)  # least and largest, in mm, of a ball of the same volume: from a large node to a bulky mass
CONTRASTS = (3.0, 8.0)  # least and largest ratio of uptake in a lesion to uptake around it
FIELD_OF_VIEW = (512.0, 320.0, 1120.0)  # mm to the right, front and head
FWHM = 6.0  # mm, resolution of a clinical scanner
NOISE = 0.12  # standard deviation at SUV 1 in a voxel of 8 mm
# Numbers of the streams of seeds, so that no volume of one stream depends on how many another one has.
_TRAIN_GOOD, _TRAIN_LESION, _TEST_GOOD, _TEST_LESION = range(4)


@dataclass(frozen=True)
class Lesion:
    """What is known of a lesion that was put in.

    Args:
        site: one of `SITES` or of `LYMPHOMA`.
        centre: millimetres to the right, front and head, in the coordinates of the affine.
        radius: millimetres, of a ball of the same volume.
        suv: uptake inside, before blur.
        contrast: `suv` divided by the uptake around it.
    """

    site: str
    centre: tuple[float, float, float]
    radius: float
    suv: float
    contrast: float


@dataclass(frozen=True)
class Phantom:
    """A generated subject.

    Args:
        volume: (D, H, W) float32 SUV; the axes are RAS.
        mask: (D, H, W) bool, True for voxels of which at least half lies in a lesion.
        lesions: those that were put in.
    """

    volume: Volume
    mask: np.ndarray
    lesions: tuple[Lesion, ...]


def generate_phantom(seed: int, lesions: int = 0, spacing: float = 8.0, recurring: bool = False) -> Phantom:
    """Generates one subject.

    Args:
        seed: of everything in it. The subject is the same with and without lesions, noise included.
        lesions: how many.
        spacing: size of a voxel in mm.
        recurring: puts lesions at sites of `LYMPHOMA`, first at the first one and then at any others, and not anywhere.

    Raises:
        ValueError: a number of lesions that is negative or, if they recur, above that of sites; a spacing outside 2 to 20 mm.
    """
    if lesions < 0:
        raise ValueError(f"lesions must not be negative, got {lesions}")
    if recurring and lesions > len(LYMPHOMA):
        raise ValueError(f"recurring lesions have {len(LYMPHOMA)} sites, got lesions={lesions}")
    if not 2 <= spacing <= 20:
        raise ValueError(f"spacing must be from 2 to 20 mm, got {spacing}")
    body = _Body(np.random.default_rng(sample_seed(seed, 0)), spacing)
    added, mask = _add_lesions(body, lesions, np.random.default_rng(sample_seed(seed, 1)), recurring)
    values = ndimage.gaussian_filter(body.activity, FWHM / 2.355 / spacing)
    generator = np.random.default_rng(sample_seed(seed, 2))
    # The noise of counts grows with the root of activity and falls with that of voxel volume; reconstruction blurs it.
    noise = ndimage.gaussian_filter(generator.standard_normal(values.shape), 0.6)
    noise *= NOISE * (8 / spacing) ** 1.5 / noise.std()
    values = np.maximum(values + noise * np.sqrt(values + 0.02), 0).astype(np.float32)
    return Phantom(Volume(values, body.grid), mask, added)


class _Body:
    """One subject on its grid: `activity` (D, H, W) float64 SUV before blur and noise, and where lesions may be put.

    `site` holds (D, H, W) bool of each of `SITES`, True where a lesion may have its centre.
    """

    def __init__(self, generator: np.random.Generator, spacing: float):
        self.generator, self.spacing = generator, spacing
        shape = [round(length / spacing) for length in FIELD_OF_VIEW]
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = [-(shape[0] - 1) * spacing / 2, -(shape[1] - 1) * spacing / 2, spacing / 2]
        self.grid = VolumeGrid.of(shape, affine)
        self.axes = [
            (np.arange(side) * spacing + start).reshape(np.roll([-1, 1, 1], axis))
            for axis, (side, start) in enumerate(zip(shape, affine[:3, 3], strict=True))
        ]
        self.activity = np.zeros(shape, dtype=np.float64)
        tall = generator.normal(1.0, 0.03)
        wide = generator.normal(1.0, 0.08)
        self.scale = (wide, wide * generator.normal(1.0, 0.05), tall)
        self.sway = generator.normal(0.0, 6.0, 2)  # nobody lies quite in the middle
        self.uptake = {name: mean * np.exp(generator.normal(0, spread)) for name, (mean, spread) in UPTAKE.items()}
        self.site = self._build()

    def place(self, at) -> np.ndarray:
        """Millimetres in this body, from millimetres in a body of average build."""
        return np.asarray(at) * self.scale + (*self.sway, 0.0)

    def inside(self, centre, radii, power: float = 2.0) -> np.ndarray:
        """Share of each voxel inside an ellipsoid, or with a `power` above 2 something more like a box.

        Centre and radii are millimetres in a body of average build, with the origin mid-thigh.
        """
        distance = sum(
            np.abs((axis - at) / (radius * scale)) ** power
            for axis, at, radius, scale in zip(self.axes, self.place(centre), radii, self.scale, strict=True)
        ) ** (1 / power)
        return np.clip(0.5 + (1 - distance) * min(radii) / self.spacing, 0, 1)

    def organ(self, name: str, centre, radii, jitter: float = 6.0, size: float = 0.08) -> np.ndarray:
        """Paints an organ near its place, in about its size (`inside`); returns the share of each voxel that lies in it.

        Standard deviations are `jitter`, in mm, along each axis of its place, and `size`, of the logarithm of each radius.
        """
        centre = np.asarray(centre, dtype=float) + self.generator.normal(0, jitter, 3)
        radii = np.asarray(radii, dtype=float) * np.exp(self.generator.normal(0, size, 3))
        share = self.inside(centre, radii)
        self.activity += share * (self.uptake[name] - self.activity)
        return share

    def _build(self) -> dict[str, np.ndarray]:
        """Paints body and organs, whose place and size are drawn in this order; returns `site`."""
        trunk = [((0, 0, 480), (165, 105, 330), 3.0), ((0, 0, 200), (175, 115, 150), 2.5)]
        legs = [((side * 85, 0, 60), (80, 85, 190), 2.5) for side in (-1, 1)]
        shoulders, neck = ((0, -10, 765), (205, 75, 60), 2.5), ((0, -5, 830), (58, 60, 90), 2.0)
        head = ((0, 10, 940), (78, 98, 112), 2.0)
        outline = [*trunk, *legs, shoulders, neck, head]
        for name, margin in (("fat", 0.0), ("muscle", 18.0)):
            for centre, radii, power in outline:
                share = self.inside(centre, np.asarray(radii) - (margin if radii[0] > 70 else margin / 2), power)
                self.activity += share * (self.uptake[name] - self.activity)
        muscle = self.activity > 0.5 * self.uptake["muscle"]

        lungs = [self.organ("lung", (side * 78, 0, 640), (62, 78, 110)) > 0.9 for side in (-1, 1)]
        spine = [
            self.organ("marrow", (0, -62 - 10 * np.cos(level), 250 + 45 * level), (20, 18, 17), 2.0) > 0.5
            for level in range(12)
        ]
        pelvis = [self.organ("marrow", (side * 95, -30, 235), (28, 40, 55)) > 0.5 for side in (-1, 1)]
        femora = [self.organ("marrow", (side * 95, 5, 90), (16, 16, 110), 4.0) > 0.5 for side in (-1, 1)]
        vessels = self.organ("blood", (8, -30, 640), (18, 18, 110), 3.0)
        vessels = vessels + self.organ("blood", (10, 15, 690), (40, 28, 40))
        liver = self.organ("liver", (75, 15, 505), (85, 75, 62)) > 0.9
        self.organ("spleen", (-105, -40, 500), (32, 38, 48))
        self.organ("stomach", (-60, 35, 500), (45, 38, 40), 10.0, 0.15)
        for _ in range(6):  # loops of bowel, some active and some not
            self.uptake["loop"] = self.uptake["bowel"] * np.exp(self.generator.normal(0, 0.4))
            place = self.generator.uniform((-95, 10, 300), (95, 55, 430))
            self.organ("loop", place, (38, 22, 24), 0.0, 0.2)
        kidneys = [self.organ("kidney", (side * 68, -45, 430), (26, 24, 50)) for side in (-1, 1)]
        heart = self.organ("heart", (-35, 30, 600), (46, 42, 48))
        self.uptake["cavity"] = self.uptake["blood"]
        self.organ("cavity", (-35, 30, 600), (24, 22, 28), 3.0)
        size = np.exp(self.generator.normal(0, 0.25))
        bladder = self.organ("bladder", (0, 30, 205), (36 * size, 32 * size, 30 * size))
        brain = self.organ("brain", (0, 10, 955), (64, 80, 66), 3.0, 0.04)
        site = {
            "lung": np.logical_or(*lungs),
            "liver": liver,
            "node": ndimage.binary_dilation(vessels > 0.3, iterations=2) & (vessels < 0.1),
            "bone": np.logical_or.reduce([*spine, *pelvis, *femora]),
        }
        # Lesions keep a distance of 16 mm from organs with much uptake and from the skin.
        steps = max(1, round(16 / self.spacing))
        soft = muscle & ~np.logical_or.reduce([*site.values()])
        site["soft"] = ndimage.binary_erosion(soft, iterations=steps)
        hot = np.maximum.reduce([*kidneys, heart, bladder, brain]) > 0.02
        allowed = ndimage.binary_erosion(self.activity > 0.1, iterations=steps)
        allowed &= ~ndimage.binary_dilation(hot, iterations=steps)
        return {name: place & allowed for name, place in site.items()}


def _add_lesions(
    body: _Body, count: int, generator: np.random.Generator, recurring: bool
) -> tuple[tuple[Lesion, ...], np.ndarray]:
    """Puts lesions into a body, away from each other or at sites of `LYMPHOMA`; returns them and the mask of a `Phantom`."""
    mask = np.zeros(body.grid.shape, dtype=bool)
    added: list[Lesion] = []
    sites: list[str | None] = [None] * count
    if recurring:
        first, *others = LYMPHOMA
        sites = [first, *generator.permutation(others).tolist()][:count]
    for site in sites:
        if site is None:
            site, voxel = _free_voxel(body, mask, generator)
            centre = (body.grid.matrix @ [*(voxel + generator.uniform(-0.5, 0.5, 3)), 1.0])[:3]
            radii = RADII
        else:
            at, radii = LYMPHOMA[site]
            centre = body.place(at) + generator.normal(0, 6, 3)
            voxel = np.round(np.linalg.solve(body.grid.matrix, [*centre, 1.0])[:3]).astype(int)
        radius = float(np.exp(generator.uniform(*np.log(radii))))
        contrast = float(np.exp(generator.uniform(*np.log(CONTRASTS))))
        share = _lump(body, centre, radius, generator)
        around = float(body.activity[tuple(voxel)])
        suv = contrast * max(around, 0.5)
        body.activity += share * (np.maximum(body.activity, suv) - body.activity)
        mask |= share >= 0.5
        x, y, z = (float(value) for value in centre)
        added.append(Lesion(site, (x, y, z), radius, suv, suv / around))
    return tuple(added), mask


def _free_voxel(body: _Body, mask: np.ndarray, generator: np.random.Generator) -> tuple[str, np.ndarray]:
    """Draws a site of `SITES`, and (3,) indices of a voxel of it that lies away from the lesions of `mask`."""
    site = SITES[int(generator.integers(len(SITES)))]
    free = body.site[site] & ~ndimage.binary_dilation(mask, iterations=max(1, round(24 / body.spacing)))
    if not free.any():
        site, free = "soft", body.site["soft"] & ~mask
    places = np.argwhere(free)
    return site, places[int(generator.integers(len(places)))]


def _lump(body: _Body, centre: np.ndarray, radius: float, generator: np.random.Generator) -> np.ndarray:
    """Share of each voxel that lies in an ellipsoid with two bumps, whose volume is about that of a ball of `radius` mm."""
    share = np.zeros(body.grid.shape)
    stretch = np.exp(generator.normal(0, 0.15, 3))
    parts = [(centre, radius * stretch / stretch.prod() ** (1 / 3))]
    for _ in range(2):
        direction = generator.standard_normal(3)
        parts.append((centre + direction / np.linalg.norm(direction) * radius * 0.6, np.full(3, 0.55 * radius)))
    for at, radii in parts:
        distance = np.sqrt(sum(((axis - place) / r) ** 2 for axis, place, r in zip(body.axes, at, radii, strict=True)))
        share = np.maximum(share, np.clip(0.5 + (1 - distance) * radii.min() / body.spacing, 0, 1))
    return share


def write_phantoms(
    folder: str | os.PathLike,
    num_train: int = 60,
    num_test_good: int = 10,
    num_test_lesion: int = 20,
    contamination: float = 0.3,
    spacing: float = 8.0,
    seed: int = 0,
    recurring: bool = False,
) -> Path:
    """Writes a data set whose training volumes are contaminated, in the layout that `load_volumes` reads.

    A volume with lesions has 1 to `MOST_LESIONS` of them, or 1 to `MOST_RECURRING` that recur. `lesions.json` holds the fields of
    each `Lesion`. Training reads neither that file nor the name of the folder that a volume lies in.

    Args:
        folder: made if need be; must be empty.
        num_train: training volumes in all.
        num_test_good, num_test_lesion: test volumes without and with lesions.
        contamination: share of training volumes with lesions, in [0, 1), rounded to whole ones.
        spacing: size of a voxel in mm.
        seed: of all volumes. Each volume has a seed of its own, so that asking for more does not change the first ones.
        recurring: as of `generate_phantom`.

    Raises:
        FileExistsError: the folder holds something already.
        ValueError: a number out of range.
    """
    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; choose another folder, or delete it")
    if not 0 <= contamination < 1:
        raise ValueError(f"contamination must be in [0, 1), got {contamination}: training needs good volumes too")
    hidden = round(contamination * num_train)
    if min(num_train - hidden, num_test_good, num_test_lesion) < 0 or num_train < 1:
        raise ValueError(f"numbers of volumes must not be negative: {num_train}, {num_test_good}, {num_test_lesion}")
    record: dict[str, list[dict]] = {}
    plan = (
        ("test/good", num_test_good, _TEST_GOOD, False, 0),
        ("test/lesion", num_test_lesion, _TEST_LESION, True, 0),
        ("train/good", num_train - hidden, _TRAIN_GOOD, False, 0),
        # numbered on, because the ground truth of train and test lies in one folder
        ("train/lesion", hidden, _TRAIN_LESION, True, num_test_lesion),
    )
    for part, count, stream, with_lesions, first in plan:
        phantoms = _phantoms(count, seed, stream, with_lesions, spacing, recurring)
        for number, phantom in enumerate(phantoms, start=first):
            path = write_volume(phantom.volume.values, root / part / f"{number:03d}.nii.gz", phantom.volume)
            record[str(path.relative_to(root))] = [asdict(lesion) for lesion in phantom.lesions]
            if with_lesions:
                write_volume(phantom.mask, root / f"ground_truth/lesion/{number:03d}_mask.nii.gz", phantom.volume)
    (root / "lesions.json").write_text(json.dumps(record, indent=2) + "\n")
    return root


def _phantoms(
    count: int, seed: int, stream: int, with_lesions: bool, spacing: float, recurring: bool
) -> Iterator[Phantom]:
    most = MOST_RECURRING if recurring else MOST_LESIONS
    for number in range(count):
        own = sample_seed(seed, stream, number)
        lesions = int(np.random.default_rng(sample_seed(own, 9)).integers(1, most + 1))
        yield generate_phantom(own, lesions if with_lesions else 0, spacing, recurring)
