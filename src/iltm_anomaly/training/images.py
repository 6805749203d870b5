"""The training images that a user asks for: which they are, and where they come from."""

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from iltm_anomaly.data.contamination import DISJOINT, contaminate, contamination_record
from iltm_anomaly.data.folder import load_images
from iltm_anomaly.data.images import files_below, readable_images
from iltm_anomaly.data.streaming import stream_images
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.hub.data_sources import as_path
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.run_folder import changes_between, read_record, refuse


class TrainingImages:
    """The training images that a user asks for, as iterable: loaded when first needed, in the process that needs them.

    An image that cannot be read is named in a warning and left out.

    Args:
        arguments: of the user.

    Raises:
        ValueError: for options that exclude each other.
    """

    def __init__(self, arguments: TrainArguments):
        if arguments.streaming and arguments.volumes:
            raise ValueError("--streaming reads images, not volumes: leave out one of the two")
        if arguments.streaming and arguments.contamination is not None:
            raise ValueError(
                "--contamination draws from the whole data set, which a stream is not: leave out --streaming"
            )
        if arguments.protocol != DISJOINT and (arguments.volumes or arguments.contamination is None):
            raise ValueError(
                f"--protocol {arguments.protocol} says which images --contamination adds: it needs that, and images"
            )
        self.arguments = arguments

    def source(self) -> str | None:
        """What tells these images from others without decoding any; None if nothing does."""
        chosen = self.arguments
        if chosen.volumes:
            return None  # of volumes the header counts too: they are read
        if chosen.streaming:  # read once: a resumed run goes on with what it has in its cache
            return f"stream {chosen.data} {chosen.category} {chosen.train_size}"
        folder, output = Path(chosen.data).expanduser(), chosen.output.absolute()
        if not folder.is_dir():
            return self._split._fingerprint
        if chosen.category is not None and (folder / chosen.category).is_dir():
            folder /= chosen.category
        drawn: tuple[Any, ...] = (chosen.category, chosen.train_size, chosen.contamination, chosen.seed)
        drawn += () if chosen.protocol == DISJOINT else (chosen.protocol,)
        digest = hashlib.sha256(repr(drawn).encode())
        for path in sorted(files_below(folder)):
            if not path.name.startswith(".") and output not in path.absolute().parents:
                status = path.stat()
                name = os.fsencode(path.relative_to(folder))
                digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """Where they come from, and which were drawn."""
        chosen = self.arguments
        record: dict[str, Any] = {"source": as_path(chosen.data), "category": chosen.category, "contamination": None}
        if chosen.streaming:
            return record | {"streamed": True}
        if self._draws:
            drawn = contamination_record(self._split)
            assert drawn is not None  # `contaminate` has just attached it
            record["contamination"] = drawn.to_dict()
        return record

    def check_resumed(self) -> None:
        """Raises RunFolderError if the run that is to be resumed has another category or draw: the images themselves are compared
        only where something is left to train. Of a stream nothing is known."""
        chosen = self.arguments
        known = read_record(chosen.output / "run.json") if chosen.resume and not chosen.streaming else None
        if known is None:
            return
        data = known["data"]
        drawn = data.get("contamination") or {}
        found: dict[str, Any] = {
            "contamination": drawn.get("fraction"),
            "protocol": drawn.get("protocol", DISJOINT),
            "train size": drawn.get("train_size"),
        }
        asked: dict[str, Any] = {
            "contamination": (chosen.contamination or 0.0) if self._draws else None,
            "protocol": chosen.protocol,
            "train size": chosen.train_size,
        }
        if chosen.category and data.get("category"):  # it may also be the end of the path
            found["category"], asked["category"] = data["category"], chosen.category
        refuse(chosen.output, changes_between(found, asked), "Give the same, or another --output")

    def __len__(self) -> int:
        if self.arguments.streaming:
            raise TypeError("a stream has no length")
        return len(self._split)

    def __iter__(self) -> Iterator[Any]:
        chosen = self.arguments
        if chosen.volumes:
            yield from self._split["image"]
        elif chosen.streaming:
            sources = stream_images(chosen.data, chosen.category, chosen.train_size)
            yield from (image for _, image in readable_images(sources))
        else:
            # a column by itself: neither labels nor masks are even decoded
            column = self._split.select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
            yield from (image for _, image in readable_images(column))

    @property
    def _draws(self) -> bool:
        return self.arguments.contamination is not None or self.arguments.train_size is not None

    @cached_property
    def _split(self) -> Dataset:
        chosen = self.arguments
        if chosen.volumes:
            dataset = load_volumes(chosen.data, chosen.category)
        else:  # a draw counts the rows of the test split, which are those that have a mask
            dataset = load_images(chosen.data, chosen.category, require_masks=self._draws)
        if self._draws:
            if "test" not in dataset:
                raise ValueError(
                    f"{chosen.data} is a folder without test images: it is trained on as it is. --contamination and "
                    "--train-size need an MVTec AD layout (train/good, test/<defect>, ground_truth/<defect>)"
                )
            drawn = (chosen.contamination or 0.0, chosen.seed, chosen.train_size, chosen.protocol)
            dataset = contaminate(dataset, *drawn)
        return dataset["train"]
