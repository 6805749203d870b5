"""A small category, and the place of the real data."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # for trees.py

import pytest
from trees import make_category


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return make_category(tmp_path / "widgets" / "bolt")


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("ILTM_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "mvtec" / "bottle").is_dir():
        pytest.skip(f"needs the real data: no {folder / 'mvtec' / 'bottle'} (set ILTM_DATA to the data folder)")
    return folder
