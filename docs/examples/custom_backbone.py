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
# # Another backbone
#
# The default tokens are features of EfficientNet-Lite0. Any plain network of transformers will do in its place:
# ResNet, ConvNeXt, Swin, FocalNet, DINOv2, by the id of a Hub repository or a folder.

# %%
import os
from pathlib import Path

import torch
from transformers import ConvNextBackbone, ConvNextConfig

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training.train import TrainArguments, train

TINY = bool(os.environ.get("ILTM_EXAMPLE_TINY"))  # seconds in place of minutes, for the test of this file
PRESET = "tiny-features" if TINY else "features"
SIZE, COUNT = (64, 8) if TINY else (96, 160)

# %% [markdown]
# ## The backbone
#
# **This one has random weights**, so that the notebook needs no network: it shows how, and is no good detector. In
# earnest write `backbone = "facebook/dinov2-small"`, with `levels='[6, 9]'` below, or the folder of one that you have
# trained.

# %%
torch.manual_seed(0)
backbone = "backbone"
config = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2"])
ConvNextBackbone(config).save_pretrained(backbone)

# %% [markdown]
# ## Train
#
# `levels` are the stages whose features are taken, 1 the finest; of DINOv2, which has one size, its blocks. The same as
#
#     iltm-anomaly train --data data/part/train --output run --set features.backbone=backbone features.levels='[1, 2]'

# %%
root = write_mvtec_tree(generate_dataset("part", SIZE, COUNT, 4, 4, seed=0, recurring=True), "data", "part")
chosen = [f"features.backbone={backbone}", "features.levels=[1, 2]"]
train(TrainArguments(str(root / "train"), Path("run"), preset=PRESET, overrides=chosen))

# %% [markdown]
# ## Use
#
# The weights of the backbone are in the model: its folder is not needed any more.

# %%
pipe = ILTMAnomalyPipeline.from_pretrained("run")
print(pipe.tokenizer.config.backbone, pipe.tokenizer.config.backbone_config["model_type"])
for result in pipe(sorted(root.glob("test/*/*.png"))[:4]):
    print(result)
