"""Slow references, written from the definition of AUPRO, and strategies for small test sets."""

import itertools

import numpy as np
from hypothesis import strategies as st


def regions(mask):
    """Connected regions of a small mask (corners touch), as lists of index tuples, by flood fill."""
    todo = {tuple(int(i) for i in index) for index in np.argwhere(mask)}
    found = []
    while todo:
        stack = [todo.pop()]
        region = list(stack)
        while stack:
            here = stack.pop()
            near = {p for p in todo if max(abs(a - b) for a, b in zip(p, here, strict=True)) <= 1}
            todo -= near
            stack += near
            region += near
        found.append(region)
    return found


def brute_aupro(maps, masks, limit=0.3):
    """Every distinct score is a threshold; one mean per region and threshold; trapezoids up to the limit."""
    maps = [np.asarray(m, dtype=np.float64) for m in maps]
    masks = [np.zeros(m.shape, bool) if k is None else np.asarray(k, bool) for m, k in zip(maps, masks, strict=True)]
    scores = [np.array([m[p] for p in r]) for m, k in zip(maps, masks, strict=True) for r in regions(k)]
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in sorted({v for m in maps for v in m.ravel().tolist()}, reverse=True):
        points.append((np.mean(normal >= threshold), np.mean([np.mean(r >= threshold) for r in scores])))
    area = 0.0
    for (f0, p0), (f1, p1) in itertools.pairwise(points):
        if f0 >= limit:
            break
        if f1 > limit:
            f1, p1 = limit, p0 + (p1 - p0) * (limit - f0) / (f1 - f0)
        area += (f1 - f0) * (p0 + p1) / 2
    return area / limit


@st.composite
def small_test_sets(draw, ndim=2, max_images=4, side=6):
    """(maps, masks): a list of small maps of different sizes, with a region and a normal pixel at least."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 3, 8, 10**6]))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32]))
    density = draw(st.sampled_from([0.05, 0.3, 0.8]))
    maps, masks = [], []
    for _ in range(draw(st.integers(1, max_images))):
        shape = tuple(draw(st.lists(st.integers(1, side), min_size=ndim, max_size=ndim)))
        maps.append((rng.integers(0, levels, shape) - levels // 2).astype(dtype))
        masks.append(None if draw(st.booleans()) else rng.random(shape) < density)
    corner = np.zeros((2,) * ndim, dtype=bool)
    corner[(0,) * ndim] = True
    maps.append(rng.integers(0, levels, corner.shape).astype(dtype))
    masks.append(corner)
    return maps, masks


def defect_maps(n=12, size=64, seed=0, dtype=np.float32):
    """(scores (n, size, size), masks): noise, raised inside a few square defects in two thirds of the images."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), dtype=bool)
    for mask in masks[: 2 * n // 3]:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, size - 8, 2)
            mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = True
    return (rng.normal(size=masks.shape) + 1.5 * masks).astype(dtype), masks
