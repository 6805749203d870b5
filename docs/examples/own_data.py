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
# # Train and detect on your own images
#
# A folder of images, unlabelled, some of which may be defective; then new images, and what is found in them.

# %%
import os
from pathlib import Path

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.evaluation.choose_threshold import choose_threshold
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training.train import TrainArguments, train

TINY = bool(os.environ.get("ILTM_EXAMPLE_TINY"))  # seconds in place of minutes, for the test of this file
PRESET, OVERRIDES = ("tiny-features", ["image_size=128"]) if TINY else ("features", [])
SIZE, COUNT, GOOD, DEFECTIVE = (64, 24, 4, 8) if TINY else (96, 160, 30, 40)

# %% [markdown]
# ## The images
#
# Drawn here, a tenth of the training ones faulty. For your own:
# `training, new = Path("my/folder"), Path("my/new")`.

# %%
drawn = generate_dataset("part", SIZE, COUNT, GOOD, DEFECTIVE, contamination=0.1, seed=0, recurring=True)
root = write_mvtec_tree(drawn, "data", "part")
training, new = root / "train", root / "test"

# %% [markdown]
# ## Train
#
# The same as `iltm-anomaly train --data data/part/train --output run`.

# %%
train(TrainArguments(str(training), Path("run"), preset=PRESET, overrides=OVERRIDES))

# %% [markdown]
# ## One image
#
# A result says its score, its verdict and its size, and a notebook shows it as a picture: input, overlay, healed
# image.

# %%
pipe = ILTMAnomalyPipeline.from_pretrained("run")
out = pipe(sorted(new.glob("label_askew/*.png")))
result = out[0]
print(result)
result.plot().savefig("result.png")
result.save("result")  # overlay, map, mask and healed image as files

# %% [markdown]
# What is in it: the map has the image's own size and is higher where the image is less like what the model expects;
# the mask is where it reaches the threshold.

# %%
print(result.score, result.threshold, result.is_abnormal)
print(result.anomaly_map.shape, result.anomaly_map.dtype, result.mask.sum(), result.unlikely_share)

# %% [markdown]
# ## The threshold
#
# Training sets it by its own images, with no label. `false_alarms` sets it by the share of good images that you can
# bear to be called abnormal; a score of your own is `threshold=`; a folder of checked images is `labelled=`.

# %%
print(choose_threshold(pipe))
print(choose_threshold(pipe, false_alarms=0.01))

# %% [markdown]
# ## Many images
#
# The same as `iltm-anomaly detect run data/part/test --output found`: a table with a row an image, overlays, maps and
# masks. When it is killed, the same call goes on where it stopped. `iltm-anomaly report found` makes a page of it.

# %%
rows = detect(pipe, [new], Path("found"))
for row in sorted(rows, key=lambda row: -row["score"])[:5]:
    print(row["path"], row["score"], row["abnormal"], row["boxes"])
