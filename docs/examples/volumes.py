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
# # Volumes
#
# The same with 3-D kernels, on generated whole-body PET, 30 % of the training volumes with lesions. It shows the way:
# the preset is the smallest, and no good detector. `iltm-anomaly demo --volumes` trains one in earnest, in a quarter
# of an hour.

# %%
import os
from pathlib import Path

import nibabel as nib

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.synthetic.phantoms import write_phantoms
from iltm_anomaly.training.train import TrainArguments, train

TINY = bool(os.environ.get("ILTM_EXAMPLE_TINY"))  # for the test of this file
COUNT, SPACING, OVERRIDES = (4, 20.0, ["stage1.epochs=2", "stage2.epochs=2"]) if TINY else (8, 20.0, [])

# %% [markdown]
# ## The volumes
#
# NIfTI files. For your own: `data = "scans/*_suv.nii.gz"`, a pattern or a folder.

# %%
root = write_phantoms("phantoms", COUNT, num_test_good=1, num_test_lesion=1, contamination=0.3, spacing=SPACING)

# %% [markdown]
# ## Train
#
# The same as `iltm-anomaly train --volumes --data phantoms --preset tiny-volumes --output run`.

# %%
arguments = TrainArguments(str(root), Path("run"), volumes=True, preset="tiny-volumes", overrides=OVERRIDES)
train(arguments)

# %% [markdown]
# ## Detect
#
# Map and mask have the grid of the scan, and lie over it in any viewer.

# %%
scan = root / "test" / "lesion" / "000.nii.gz"
pipe = ILTMAnomalyPipeline.from_pretrained("run")
row = detect(pipe, [scan], Path("found"))[0]
print(row["score"], row["abnormal"], nib.load(scan).shape, nib.load(Path("found", row["map"])).shape)

# %% [markdown]
# Without files:

# %%
result = pipe(scan)[0]
print(result)
result.plot().savefig("projections.png")
