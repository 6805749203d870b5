"""What was found, as it shows itself from Python."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, size in {"a": (40, 32), "b": (20, 30)}.items():
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def test_a_result_says_score_decision_and_size(paths):
    out = tiny_pipeline(score_threshold=3.0)(paths)
    assert len(out) == 2 and [result.image for result in out] == paths
    first, last = out[0], out[-1]
    assert repr(first) == f"AnomalyResult(score {float(out.scores[0]):.4g} (threshold 3): abnormal, 32 x 40)"
    assert last.is_abnormal and last.anomaly_map is out.anomaly_maps[1] and last.healed_image is out.healed_images[1]
    assert last.unlikely_share == pytest.approx(float(out.resampled_tokens[1].float().mean()))
    assert "normal" in repr(tiny_pipeline(score_threshold=1e6)(paths)[0])
    undecided = tiny_pipeline()(paths)[0]
    assert undecided.is_abnormal is None and "no threshold, 32 x 40" in repr(undecided)


@pytest.mark.parametrize("form", ["path", "picture", "array"])
def test_a_result_shows_and_saves_itself(paths, tmp_path, form):
    picture = Image.open(paths[0]).convert("RGB")
    given = {"path": paths[0], "picture": picture, "array": np.asarray(picture, np.float32) / 255}[form]
    result = tiny_pipeline(score_threshold=3.0)(given)[0]
    assert len(result.plot().axes) == 3
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert shown.format == "PNG" and shown.width > 2 * shown.height
    files = result.save(tmp_path / "new" / "folder")
    name = "a" if form == "path" else "image"
    assert [path.name for path in files] == [
        f"{name}_{key}" for key in ("overlay.png", "map.npy", "mask.png", "healed.png")
    ]
    np.testing.assert_array_equal(np.load(files[1]), result.anomaly_map)
    np.testing.assert_array_equal(np.array(Image.open(files[2])), result.mask)
    assert Image.open(files[0]).size == picture.size
    assert result.save(tmp_path, "mine")[0] == tmp_path / "mine_overlay.png"
