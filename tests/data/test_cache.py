"""The cache of decoded images."""

import numpy as np
import pytest
import torch

from iltm_anomaly.data import cache as module
from iltm_anomaly.data.cache import CacheDamagedError, PixelCache, build_cache, difference


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (3, 8, 6), dtype=np.uint8) for _ in range(23)]


def build(path, images, monkeypatch=None, **more):
    if monkeypatch is not None:
        monkeypatch.setattr(module, "BATCH_BYTES", 1000)  # several record batches, the last one not full
    return build_cache(path, images, lambda image: image, **more)


def test_reads_like_a_tensor(tmp_path, images, monkeypatch):
    built = build(tmp_path / "images.arrow", iter(images), monkeypatch, source="here")
    expected = torch.from_numpy(np.stack(images))
    for cache in (built, PixelCache(tmp_path / "images.arrow")):
        assert cache.shape == expected.shape and len(cache) == 23 and cache.source == "here"
        assert torch.equal(cache[:], expected) and cache[0].dtype == torch.uint8
        assert torch.equal(cache[5], expected[5]) and torch.equal(cache[-1], expected[-1])
        assert torch.equal(cache[::7], expected[::7])
        chosen = torch.tensor([22, 3, 3, 0])
        assert torch.equal(cache[chosen], expected[chosen])
        with pytest.raises(IndexError, match="image 23 of 23"):
            cache[23]
        cache.verify()
    built[0].fill_(0)
    assert torch.equal(built[0], expected[0]), "what is read is a copy"
    assert [p.name for p in tmp_path.iterdir()] == ["images.arrow"]


def test_says_how_images_differ(tmp_path, images):
    cache = build(tmp_path / "images.arrow", images)
    assert difference(cache, images, lambda image: image) is None
    assert "23 images then, 22 now" in difference(cache, images[:-1], lambda image: image)
    assert "23 images then, 24 now" in difference(cache, [*images, images[0]], lambda image: image)
    changed = [image.copy() for image in images]
    changed[4][0, 0, 0] ^= 1
    assert "1 differ, the first is number 4" in difference(cache, changed, lambda image: image)
    assert cache.digest != build(tmp_path / "other.arrow", changed).digest


def test_damage_is_found(tmp_path, images):
    path = tmp_path / "images.arrow"
    build(path, images)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CacheDamagedError, match="does not fit its checksum"):
        PixelCache(path).verify()
    for part in (content[:-50], b"", b"nothing of the kind"):
        path.write_bytes(bytes(part))
        with pytest.raises(CacheDamagedError, match=r"images\.arrow is damaged"):
            PixelCache(path)


def test_what_cannot_be_finished_leaves_nothing(tmp_path, images):
    with pytest.raises(ValueError, match=r"has shape \(3, 8, 5\), the first image \(3, 8, 6\)"):
        build(tmp_path / "images.arrow", [*images, images[0][..., :5]])
    with pytest.raises(ValueError, match="no training image"):
        build(tmp_path / "images.arrow", [])
    assert not list(tmp_path.iterdir())
