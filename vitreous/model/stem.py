"""ConvolutionStem: a few convolutions make the tokens, so that little data is enough to learn what edges are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.model.config import ModelConfig
from vitreous.model.kernels import Linear


class Convolution(nn.Module):
    """A convolution whose weight is a matrix, a row an output, as `torch.optim.Muon` expects it.

    Its window is padded so that a stride of s makes a picture s times smaller.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False):
        super().__init__()
        self.window, self.stride, self.padding = (inputs, kernel, kernel), stride, (kernel - stride + 1) // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs * kernel * kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, image: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return F.conv2d(image, self.weight.unflatten(1, self.window), self.bias, self.stride, self.padding)


class StemStep(nn.Module):
    """Convolution of 3×3, a max-pool that halves the picture or none, LayerNorm over the channels, GELU."""

    def __init__(self, inputs: int, outputs: int, halve: bool, eps: float):
        super().__init__()
        self.convolution = Convolution(inputs, outputs)
        self.halve = halve
        self.norm = nn.LayerNorm(outputs, eps=eps)

    def forward(self, image: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), or half of each side."""
        image = self.convolution(image)
        if self.halve:
            image = F.max_pool2d(image, 2)
        return F.gelu(self.norm(image.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ConvolutionStem(nn.Module):
    """A first convolution, a step that halves the picture for each of the config's later `stem` widths, between two of
    them one that does not, and a projection to D (Early Convolutions Help Transformers See Better, 2106.14881, has
    strides in place of the pools). Channels come last in memory.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        first, *widths = config.stem
        stride = config.stem_stride
        self.first = Convolution(config.channels, first, 3 if stride == 1 else 2 * stride, stride, bias=True)
        steps, inputs = [], first
        for number, width in enumerate(widths):
            if number:
                steps.append(StemStep(inputs, inputs, halve=False, eps=config.norm_eps))
            steps.append(StemStep(inputs, width, halve=True, eps=config.norm_eps))
            inputs = width
        self.steps = nn.Sequential(*steps)
        self.projection = Linear(inputs, config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw).

        Raises `InputError` for a picture that does not divide into tokens.
        """
        grid = self.config.grid(*pixels.shape[-2:])
        image = F.gelu(self.first(pixels.contiguous(memory_format=torch.channels_last)))
        return self.projection(self.steps(image).flatten(2).mT), grid
