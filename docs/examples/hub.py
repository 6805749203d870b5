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
# # The Hub: push, load, take a part
#
# What goes up, and how it comes back. Nothing is sent here: a push is only planned, and a folder stands for the
# repository.

# %%
import os
from pathlib import Path

import transformers

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training.train import TrainArguments, train

TINY = bool(os.environ.get("ILTM_EXAMPLE_TINY"))  # seconds in place of minutes, for the test of this file
PRESET = "tiny-features" if TINY else "features"
SIZE, COUNT = (64, 8) if TINY else (96, 160)

# %% [markdown]
# ## A model to push

# %%
root = write_mvtec_tree(generate_dataset("part", SIZE, COUNT, 1, 1, seed=0, recurring=True), "data", "part")
model = train(TrainArguments(str(root / "train"), Path("run"), preset=PRESET))

# %% [markdown]
# ## What would go up
#
# The same as `iltm-anomaly push run org/iltm-mine --dry-run`. Images, checkpoints and logs never do. A model card is
# made. After `hf auth login`, `iltm-anomaly push run org/iltm-mine` sends it, or `pipe.push_to_hub("org/iltm-mine")`.

# %%
print(plan_upload(model, "org/iltm-mine").describe())

# %% [markdown]
# ## Load it
#
# With a repository write `"org/iltm-mine"`, and `revision=` for one commit of it. A stranger's is checked before
# anything is loaded: pickles, code, unknown classes and ill-fitting weights are refused.

# %%
repository = str(model)
image = sorted(root.glob("test/*/*.png"))[-1]
pipe = ILTMAnomalyPipeline.from_pretrained(repository)
print(pipe(image)[0])

# %% [markdown]
# Or in the way of transformers:

# %%
detector = transformers.pipeline("anomaly-detection", model=repository)
found = detector(str(image))
print(found["score"], found["label"], found["anomaly_map"].shape)

# %% [markdown]
# ## A part alone
#
# A repository has the tokenizer and the prior in folders of their own.

# %%
tokenizer = transformers.AutoModel.from_pretrained(repository, subfolder="tokenizer")
prior = transformers.AutoModel.from_pretrained(repository, subfolder="prior")
print(type(tokenizer).__name__, type(prior).__name__)
