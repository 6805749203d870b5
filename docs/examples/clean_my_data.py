# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which of my images are the defective ones?
#
# You have a folder of images, some of them are defective, and nobody has sorted them. This notebook trains on all of
# them, lists those that look defective, lets you decide, and trains again on the rest. No label is read anywhere.

# %%
import csv
import os
import shutil
from pathlib import Path

from PIL import Image

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.evaluation.report import write_report
from iltm_anomaly.synthetic.dataset import generate_dataset
from iltm_anomaly.training.train import TrainArguments, train

TINY = bool(os.environ.get("ILTM_EXAMPLE_TINY"))  # seconds in place of minutes, for the test of this file
PRESET, OVERRIDES = ("tiny-features", ["image_size=128"]) if TINY else ("features", [])
SIZE, COUNT, GOOD, DEFECTIVE = (64, 24, 4, 8) if TINY else (96, 160, 30, 40)

# %% [markdown]
# ## The images
#
# Here they are drawn: 160 pictures of a machined part, 48 of which have one of four faults. For your own, replace this
# cell by `images = Path("my/folder")`, and leave out the last two.

# %%
drawn = generate_dataset("part", SIZE, COUNT, GOOD, DEFECTIVE, contamination=0.3, seed=0, recurring=True)
images = Path("parts")
images.mkdir()
for number, row in enumerate(drawn["train"]):
    row["image"].save(images / f"{number:03d}.png")

# %% [markdown]
# ## Train on all of them
#
# `rounds.abnormal_share` is the largest share of defective images that you think possible; left out, it is a quarter.

# %%
train(TrainArguments(str(images), Path("before"), preset=PRESET, overrides=[*OVERRIDES, "rounds.abnormal_share=0.35"]))

# %% [markdown]
# ## The suspicious ones
#
# Training leaves `training_images.csv`, the most suspicious image first. `looks_defective` is 1 from the threshold on;
# `rejected_share` is the share of an image that was given up, since the other images have nothing like it.

# %%
with open("before/training_images.csv", newline="", encoding="utf-8") as file:
    suspects = list(csv.DictReader(file))
for row in suspects[:10]:
    print(*row.values())

# %% [markdown]
# Look at them: at the first 24, dimmed where they were kept, or at a page of all.

# %%
page, _ = write_report(Path("before"))
print(f"open {page} in a browser")
Image.open("before/training_images.png")

# %% [markdown]
# ## Decide
#
# `review.csv` says which images to move and which to keep. Open it in a spreadsheet and correct the last column: an
# image that is rare but good is to be kept, and a fault that you see among the next ones is to be moved.

# %%
with open("review.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "score", "decision"])
    for row in suspects:
        writer.writerow([row["path"], row["score"], "move" if row["looks_defective"] == "1" else "keep"])

# %% [markdown]
# Your images stay where they are: copies go to `sorted/keep` and `sorted/move`.

# %%
with open("review.csv", newline="", encoding="utf-8") as file:
    decisions = {Path(row["path"]): row["decision"] for row in csv.DictReader(file)}
for path, decision in decisions.items():
    target = Path("sorted", decision, path.relative_to(images.resolve()))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)
print({decision: list(decisions.values()).count(decision) for decision in ("keep", "move")})

# %% [markdown]
# ## Train again
#
# On what was kept; a few defective images may be left. `iltm-anomaly detect after NEW_IMAGES --output found` scores
# new ones.

# %%
train(TrainArguments("sorted/keep", Path("after"), preset=PRESET, overrides=OVERRIDES))

# %% [markdown]
# ## Was it worth it?
#
# These images were drawn, so we know. First: which faulty ones were moved?

# %%
faulty = {f"{number:03d}.png" for number, row in enumerate(drawn["train"]) if row["label"]}
moved = {path.name for path in Path("sorted/move").glob("*")}
print(f"moved: {len(moved)}, of them faulty: {len(moved & faulty)}; faulty in all: {len(faulty)}")

# %% [markdown]
# And how many of new images does each model call abnormal?

# %%
for run in ("before", "after"):
    pipe = ILTMAnomalyPipeline.from_pretrained(run)
    verdicts = [bool(result.is_abnormal) for result in pipe(drawn["test"]["image"])]
    truth = drawn["test"]["label"]
    found = sum(verdict and label for verdict, label in zip(verdicts, truth, strict=True))
    print(f"{run}: {found} of {sum(truth)} faulty images found, {sum(verdicts) - found} false alarms")
