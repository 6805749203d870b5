import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from iltm_anomaly.data.images import ImageReadError, _warn_of_few_bits, read_image
from iltm_anomaly.processing.image_processing import ILTMImageProcessor


@pytest.fixture
def processor() -> ILTMImageProcessor:
    return ILTMImageProcessor(size={"height": 16, "width": 16})


def colours(size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Left half red, right half blue; size is (width, height)."""
    image = Image.new("RGB", size, (200, 0, 0))
    image.paste((0, 0, 100), (size[0] // 2, 0, size[0], size[1]))
    return image


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


# Reading files


def test_grey_palette_and_bilevel(tmp_path):
    assert read_image(save(Image.new("L", (3, 2), 77), tmp_path / "grey.png")).getpixel((0, 0)) == (77, 77, 77)
    palette = colours().quantize(4)
    assert palette.mode == "P"
    assert np.array_equal(read_image(save(palette, tmp_path / "palette.png")), palette.convert("RGB"))
    assert read_image(save(Image.new("1", (3, 2), 1), tmp_path / "bilevel.png")).getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_laid_on_white(tmp_path):
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    half.putpixel((1, 0), (10, 20, 30, 0))
    image = read_image(save(half, tmp_path / "alpha.png"))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    half.putpixel((1, 0), (0, 0, 0, 128))
    assert read_image(save(half, tmp_path / "half.png")).getpixel((1, 0)) == (127, 127, 127)
    grey = Image.new("LA", (1, 1), (50, 0))
    assert read_image(save(grey, tmp_path / "la.png")).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparency(tmp_path):
    palette = colours().quantize(2)
    index = palette.getpixel((0, 0))
    image = read_image(save(palette, tmp_path / "p.png", transparency=index))
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((15, 0)) == (0, 0, 100)
    image = read_image(save(palette, tmp_path / "p.gif", transparency=index))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_one_transparent_colour(tmp_path):
    image = read_image(save(colours(), tmp_path / "t.png", transparency=(200, 0, 0)))
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((15, 0)) == (0, 0, 100)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_uses_the_full_range(tmp_path, suffix):
    values = np.array([[0, 257, 12800, 65535]], dtype=np.uint16)
    image = read_image(save(Image.fromarray(values), tmp_path / f"deep.{suffix}"))
    assert [pixel[0] for pixel in image.get_flattened_data()] == [0, 1, 50, 255]
    # An image without bright pixels is not stretched.
    dark = read_image(save(Image.fromarray(values[:, :3]), tmp_path / f"dark.{suffix}"))
    assert max(pixel[0] for pixel in dark.get_flattened_data()) == 50


def test_images_of_a_camera_of_twelve_bits_are_warned_of_once(tmp_path, caplog):
    _warn_of_few_bits.cache_clear()
    path = save(Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)), tmp_path / "dark.png")
    assert read_image(path).getpixel((1, 0)) == read_image(path).getpixel((1, 0)) == (16, 16, 16)
    assert caplog.text.count("no value above 4095") == 1


def test_sixteen_bit_colour(tmp_path):
    """Written by hand, since Pillow reads 16-bit colour but does not write it."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = struct.pack(">3H", 65535, 25700, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels))
        + chunk(b"IEND", b"")
    )
    assert read_image(path).getpixel((0, 0)) == (255, 100, 0)


def test_float_tiff(tmp_path):
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    image = read_image(save(Image.fromarray(values), tmp_path / "unit.tif"))
    assert [pixel[0] for pixel in image.get_flattened_data()] == [0, 128, 255]
    path = save(Image.fromarray(values * 255), tmp_path / "bytes.tif")
    with pytest.raises(ImageReadError, match=r"bytes\.tif: float image must lie in \[0, 1\], got .* 0 to 255"):
        read_image(path)
    path = save(Image.fromarray(values * np.nan), tmp_path / "nan.tif")
    with pytest.raises(ImageReadError, match=r"nan\.tif: float image holds 3 NaN or infinite values"):
        read_image(path)


def test_integers_beyond_sixteen_bits(tmp_path):
    path = save(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), tmp_path / "int.tif")
    with pytest.raises(ImageReadError, match=r"must lie in 0\.\.65535, got values from 0 to 70000"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    image = read_image(save(colours((32, 32)).convert("CMYK"), tmp_path / f"print.{suffix}"))
    assert np.abs(np.subtract(image.getpixel((4, 4)), (200, 0, 0))).max() < 6
    assert np.abs(np.subtract(image.getpixel((28, 28)), (0, 0, 100))).max() < 6


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    path = save(colours((8, 4)), tmp_path / "turned.png", exif=exif)
    image = read_image(path)
    assert image.size == (4, 8)
    assert image.getpixel((0, 0)) == (200, 0, 0) and image.getpixel((0, 7)) == (0, 0, 100)
    processor = ILTMImageProcessor(size=8)
    assert processor(path).original_sizes == processor(Image.open(path)).original_sizes == [(8, 4)]
    assert torch.equal(processor(path).pixel_values, processor(Image.open(path)).pixel_values)


def test_first_of_several_frames(tmp_path, caplog):
    frames = [Image.new("L", (4, 4), value) for value in (10, 20)]
    path = save(frames[0], tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((0, 0)) == (10, 10, 10)
    assert "stack.tif has 2 frames" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"certainly no image", "not in an image format that is read"),
        ("truncated", "truncated|broken|Truncated"),
        (None, "no such file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, processor, content, reason):
    path = tmp_path / "bad.png"
    if content == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        save(Image.fromarray(noise), path)
        path.write_bytes(path.read_bytes()[:4000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"cannot read image .*bad\.png: .*({reason})"):
        read_image(path)
    with pytest.raises(ValueError, match=r"bad\.png"):
        processor([save(colours(), tmp_path / "good.png"), path])


def test_folder_is_no_image(tmp_path):
    with pytest.raises(ImageReadError, match="it is a folder"):
        read_image(tmp_path)


def test_truncated_jpeg(tmp_path):
    path = save(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), tmp_path / "a.jpg"
    )
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"a\.jpg: .*truncated"):
        read_image(path)


# From any form to pixel_values


def test_every_form_of_one_image_gives_the_same(tmp_path, processor):
    image = colours((20, 12))
    array = np.asarray(image)
    path = save(image, tmp_path / "a.png")
    forms = [path, str(path), image, array, torch.tensor(array).permute(2, 0, 1)]
    result = processor(forms)
    assert result.pixel_values.shape == (5, 3, 16, 16) and result.pixel_values.dtype == torch.float32
    assert result.original_sizes == [(12, 20)] * 5
    assert all(torch.equal(values, result.pixel_values[0]) for values in result.pixel_values)
    for form in forms:
        assert torch.equal(processor(form).pixel_values[0], result.pixel_values[0])
    for deep in (array.astype(np.uint16) * 257, array.astype(np.float32) / 255, array / 255):
        torch.testing.assert_close(processor(deep).pixel_values[0], result.pixel_values[0], atol=0.006, rtol=0)


def test_values_without_resizing(processor):
    image = colours()
    values = processor(image).pixel_values[0]
    np.testing.assert_allclose(values.permute(1, 2, 0), np.asarray(image) / 255, atol=1e-7)
    floats = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    np.testing.assert_array_equal(processor(floats).pixel_values[0].permute(1, 2, 0), floats)


def test_batches_and_iterables(processor):
    arrays = np.zeros((4, 10, 10, 3), dtype=np.uint8)
    assert processor(arrays).pixel_values.shape == (4, 3, 16, 16)
    assert processor(torch.zeros(4, 1, 10, 12)).original_sizes == [(10, 12)] * 4
    assert processor(image for image in [colours(), colours()]).pixel_values.shape[0] == 2
    assert isinstance(processor(colours(), return_tensors="np").pixel_values, np.ndarray)


def test_datasets_column(processor):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    dataset = Dataset.from_dict({"image": [colours(), colours()]}, features=Features({"image": ImageFeature()}))
    assert processor(dataset["image"]).pixel_values.shape == (2, 3, 16, 16)


def test_grey_and_alpha_arrays(processor):
    grey = np.full((16, 16), 51, dtype=np.uint8)
    for form in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey / 255.0):
        assert torch.allclose(processor(form).pixel_values, torch.full((1, 3, 16, 16), 0.2))
    for scale in (np.uint8(255), np.float32(1)):
        alpha = np.zeros((16, 16, 4), dtype=scale.dtype)
        alpha[:8, :, 3] = scale
        values = processor(alpha).pixel_values
        assert (values[:, :, :8] == 0).all() and (values[:, :, 8:] == 1).all()
    assert (processor(np.ones((16, 16), dtype=bool)).pixel_values == 1).all()
    assert processor(torch.full((3, 16, 16), 0.25, dtype=torch.bfloat16)).pixel_values.mean() == 0.25


def test_one_channel_end_to_end(tmp_path):
    processor = ILTMImageProcessor(size={"height": 12, "width": 20}, num_channels=1)
    image = colours((40, 24))
    for form in (
        image,
        np.asarray(image),
        np.asarray(image) / 255,
        save(image, tmp_path / "a.png"),
        image.convert("L"),
    ):
        values = processor(form).pixel_values
        assert values.shape == (1, 1, 16, 24)
        assert values[0, 0, 5, 2].item() == pytest.approx(0.299 * 200 / 255, abs=0.003)
    restored = processor.restore_image(values[0])
    assert restored.mode == "L" and restored.size == (20, 12)


def test_floats_are_clamped_after_resizing():
    edge = np.zeros((40, 40), dtype=np.float32)
    edge[:, 20:] = 1
    values = ILTMImageProcessor(size=16)(edge).pixel_values
    assert values.min() >= 0 and values.max() <= 1


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.full((8, 8, 3), np.nan), ValueError, "image 1 .* holds 192 NaN or infinite"),
        (np.array([[0.0, np.inf]]), ValueError, "image 1 .* holds 1 NaN or infinite"),
        (torch.full((3, 8, 8), 200.0), ValueError, r"image 1 .* must lie in \[0, 1\], got values from 0 to 200"),
        (np.full((8, 8), -0.5), ValueError, "got values from -0.5"),
        (np.zeros(8), ValueError, r"image 1 .* has shape \(8,\) .*give a path, a PIL image, a numpy array \(H, W\)"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"has shape \(8, 8, 2\) \(numpy arrays are \(H, W, C\)\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"has shape \(3, 8, 8\) \(numpy arrays are \(H, W, C\)\)"),
        (torch.zeros(8, 8, 3), ValueError, r"has shape \(8, 8, 3\) \(tensors are \(C, H, W\)\)"),
        (np.zeros((2, 2, 8, 8, 3)), ValueError, r"has shape \(2, 2, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "is empty"),
        (np.zeros((8, 8), np.int64), ValueError, "has type int64; give uint8, uint16"),
        (Image.new("RGB", (0, 4)), ValueError, "is empty"),
        (3, TypeError, "cannot use a int as images"),
        ({"image": colours()}, TypeError, "cannot use a dict as images"),
    ],
)
def test_bad_images_are_named(processor, image, error, message):
    with pytest.raises(error, match=message):
        processor([colours(), image])


def test_no_images_and_bad_options(processor):
    with pytest.raises(ValueError, match="no images given"):
        processor([])
    with pytest.raises(ValueError, match=r"unknown setting\(s\) sise; ILTMImageProcessor takes size"):
        processor(colours(), sise=32)
    with pytest.raises(ValueError, match="return_tensors"):
        processor(colours(), return_tensors="tf")


def test_settings_for_one_call(processor):
    before = processor.to_dict()
    once = processor(colours(), size=24, num_channels=1)["pixel_values"]
    assert torch.equal(once, ILTMImageProcessor(size=24, num_channels=1)(colours())["pixel_values"])
    assert once.shape == (1, 1, 24, 24) and processor.to_dict() == before


# Back to the input's size


def test_size_that_is_no_multiple_is_padded_with_edge_pixels():
    processor = ILTMImageProcessor(size={"height": 20, "width": 30})
    assert processor.spatial_size == (20, 30) and processor.padded_size == (24, 32)
    values = processor(colours((30, 20))).pixel_values
    assert values.shape == (1, 3, 24, 32)
    assert torch.equal(values[..., 30:], values[..., 29:30].expand(-1, -1, -1, 2))
    assert torch.equal(values[..., 20:, :], values[..., 19:20, :].expand(-1, -1, 4, -1))
    padded = torch.zeros(24, 32)
    padded[20:] = padded[:, 30:] = 9
    assert processor.restore_map(padded, (50, 70)).max() == 0
    assert np.array_equal(processor.restore_image(values), colours((30, 20)))


def test_restored_maps_lie_where_the_image_was():
    processor = ILTMImageProcessor(size={"height": 32, "width": 48})
    image = np.zeros((100, 60), dtype=np.float32)
    image[20:40, 30:50] = 1
    values = processor(image)
    restored = processor.restore_map(values.pixel_values[0, 0], values.original_sizes[0])
    assert restored.shape == (100, 60) and restored.dtype == np.float32
    assert restored[23:37, 33:47].min() > 0.9 and restored[:15].max() < 0.1 and restored[:, :25].max() < 0.1
    small = processor.restore_map(values.pixel_values[0, 0], (25, 15))
    assert small.shape == (25, 15) and small[6:9, 9:11].min() > 0.8
    same = processor.restore_map(values.pixel_values[0, 0].numpy(), (32, 48))
    np.testing.assert_array_equal(same, values.pixel_values[0, 0])
    np.testing.assert_allclose(processor.restore_map(torch.full((32, 48), 3.5), (77, 31)), 3.5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"size of pixel_values, \(32, 48\), got \(1, 32, 48\)"):
        processor.restore_map(values.pixel_values[0, :1], (32, 48))


def test_restored_images(processor):
    values = processor(colours((40, 20))).pixel_values
    assert processor.restore_image(values[0]).size == (16, 16)
    restored = processor.restore_image(values, (20, 40))
    assert restored.size == (40, 20) and np.abs(np.subtract(restored.getpixel((3, 3)), (200, 0, 0))).max() < 3
    assert processor.restore_image(values[0] + 5).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"one image of shape \(3, 16, 16\), got \(2, 3, 16, 16\)"):
        processor.restore_image(values.expand(2, -1, -1, -1))


# Settings


def test_defaults():
    processor = ILTMImageProcessor()
    assert processor.size == {"height": 256, "width": 256} and processor.size_divisor == 8
    assert processor.resample == Image.Resampling.LANCZOS and processor.num_channels == 3
    assert ILTMImageProcessor(size=64).size == {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 8}}, "size must be"),
        ({"size": {"height": 8, "width": 0}}, "size must be"),
        ({"size": {"height": 8, "width": 8.5}}, "size must be"),
        ({"size": {"shortest_edge": 8}}, "size must be"),
        ({"size": "large"}, "size must be"),
        ({"num_channels": 2}, "num_channels must be 1"),
        ({"size_divisor": 0}, "size_divisor must be at least 1"),
        ({"rescale_factor": 0}, "rescale_factor must be positive"),
        ({"resample": 17}, "resample must be one of"),
        ({"sise": 3}, r"unknown setting\(s\) sise"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ILTMImageProcessor(**settings)


def test_save_and_reload(tmp_path):
    processor = ILTMImageProcessor(
        size={"height": 20, "width": 30}, resample=Image.Resampling.BILINEAR, num_channels=1, size_divisor=4
    )
    processor.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "ILTMImageProcessor"
    )
    reloaded = ILTMImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    image = colours((50, 40))
    assert torch.equal(reloaded(image).pixel_values, processor(image).pixel_values)
    assert ILTMImageProcessor.from_pretrained(tmp_path, num_channels=3).num_channels == 3


def test_auto_class_in_a_fresh_process(tmp_path):
    ILTMImageProcessor(size=24, num_channels=1).save_pretrained(tmp_path)
    code = (
        "from transformers import AutoImageProcessor, PreTrainedConfig\n"
        "from iltm_anomaly.processing.image_processing import ILTMImageProcessor as Ours\n"
        "class Config(PreTrainedConfig):\n    model_type = 'only_here'\n"
        "AutoImageProcessor.register(Config, image_processor_classes={'pil': Ours, 'torchvision': Ours})\n"
        f"processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r})\n"
        "assert type(processor) is Ours and processor.size['height'] == 24 and processor.num_channels == 1\n"
        "import sys; assert 'datasets' not in sys.modules\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
