"""PatchEmbedding: the picture cut into patches, each projected to a token."""

from torch import Tensor, nn

from vitreous.model.config import ModelConfig


class PatchEmbedding(nn.Module):
    """Patches of (ph, pw) pixels through one linear layer, written as a convolution whose stride is its kernel."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Conv2d(config.channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> tokens (B, N, D) row by row, and their grid (gh, gw).

        Raises `InputError` for a picture that does not divide into patches.
        """
        grid = self.config.grid(*pixels.shape[-2:])
        return self.projection(pixels).flatten(2).mT, grid
