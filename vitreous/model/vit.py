"""VisionTransformer: tokenizer, position, encoder, head."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitreous.errors import InputError
from vitreous.model import ablations
from vitreous.model.config import ModelConfig
from vitreous.model.encoder import EncoderBlock, make_norm
from vitreous.model.head import DistilledHead, Head, Pool
from vitreous.model.merging import Merging
from vitreous.model.patch import PatchEmbedding
from vitreous.model.position import PositionEmbedding
from vitreous.model.presets import PRESETS, preset
from vitreous.model.stem import Convolution, ConvolutionStem
from vitreous.model.t2t import ConvolutionTokens, TokensToToken


class VisionTransformer(nn.Module):
    """The encoder-only transformer of *An Image Is Worth 16×16 Words* (2010.11929); with the tokens-to-token
    module as its tokenizer, that of *Tokens-to-Token ViT* (2101.11986). No dropout.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tokenizer = make_tokenizer(config)
        self.prefix = nn.Parameter(torch.empty(config.prefix, config.width)) if config.prefix else None
        self.position = PositionEmbedding(config)
        self.blocks, width = make_blocks(config)
        self.norm = make_norm(config, width)
        self.pool = Pool(config)
        self.head = DistilledHead(config) if config.distillation else Head(config, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> outputs (B, outputs)."""
        return self.head(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> what the head reads, (B, D) or, with a distillation token, (B, 2, D).

        Raises `InputError` for a number of channels or a size that the model was not made for.
        """
        return self.read(*self._encode(pixels))

    def read(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Tokens (B, prefix + N, D) as they leave a block -> what the head reads.

        `sizes` (B, prefix + N, 1) are the patches that each stands for, where tokens have merged.
        """
        if self.config.norm_after_pool:
            return self.norm(self.pool(tokens, sizes))
        return self.pool(self.norm(tokens), sizes)

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> tokens (B, prefix + N, D) after the last block, fewer where they merge."""
        return self._encode(pixels)[0]

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `encode` gives, and the sizes of the tokens, for `read`."""
        if pixels.ndim != 4 or pixels.shape[1] != self.config.channels:
            raise InputError(
                f"pixels of shape {tuple(pixels.shape)}: expected (batch, {self.config.channels}, height, width)"
            )
        tokens, grid = self.tokenizer(pixels)
        tokens = tokens.to(self.norm.weight.dtype)  # the residual stream keeps full precision under autocast
        if self.prefix is not None:
            first = self.prefix.expand(tokens.shape[0], -1, -1).to(tokens)
            tokens = torch.cat((first, tokens), 1)  # (B, prefix + N, D)
        merging = Merging(self.config) if self.config.merge else None
        for layer, block in enumerate(self.blocks):
            if merging is None:
                tokens = self.position(tokens, grid, layer)
            else:
                tokens = merging.gather(self.position(merging.spread(tokens), grid, layer))
            tokens = block(tokens, self.position.relation(grid, layer, tokens)._replace(merging=merging))
        return tokens, merging.sizes if merging else None


def create(name: str, *, seed: int = 0, **overrides) -> VisionTransformer:
    """A named model with fresh weights: `create("t2t_vit_t_14", outputs=10, channels=1, image_size=(1700, 500))`.

    `overrides` are fields of `ModelConfig`. Equal arguments give equal weights. Raises `InputError` for a name or a
    value that does not fit.
    """
    return build(preset(name, **overrides), seed)


def build(config: ModelConfig, seed: int = 0) -> VisionTransformer:
    """A model with fresh weights: matrices as Glorot & Bengio 2010 have them, biases and the last layer zero.

    Tokens of patches and soft splits start with deviation 1/2, somewhat less than a sin-cos position embedding: with
    the usual weights of 0.02 a patch of few pixels would drown in its position, and small pictures would hardly be
    learned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPUs' too
        model = VisionTransformer(config)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | Convolution):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if isinstance(module.bias, Tensor):
                    nn.init.zeros_(module.bias)
        projection = model.tokenizer.projection
        nn.init.normal_(projection.weight, std=0.5 * projection.weight[0].numel() ** -0.5)
        if model.prefix is not None:
            nn.init.trunc_normal_(model.prefix, std=0.02)
        for module in model.modules():
            if isinstance(module, Head):
                nn.init.zeros_(module.outputs.weight)
    return model


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(config: ModelConfig, height: int, width: int) -> int:
    """Multiply-accumulates of one picture's forward pass, the products of attention counted."""
    alike = not config.merge and config.ablation != "dense"  # then the first block tells of all
    shown = dataclasses.replace(config, depth=1) if alike else config
    with torch.device("meta"):
        model = VisionTransformer(shown)
        pixels = torch.empty(1, config.channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    counts, parts = counter.get_flop_counts(), ("blocks", "position.convolutions")
    block = sum(sum(counts.get(f"VisionTransformer.{part}.0", {}).values()) for part in parts)
    return (counter.get_total_flops() + (config.depth - shown.depth) * block) // 2


def describe_presets(size: str, channels: int, outputs: int) -> list[dict[str, Any]]:
    """A row a preset: model, parameters, macs, size, grid. `size` is "224" or "160x384"; a preset whose patches do not
    divide it, or that is made for small pictures, shows its own size.
    """
    try:
        numbers = [int(part) for part in size.lower().replace("×", "x").split("x")]
    except ValueError:
        raise InputError(f"--size {size}: expected 224 or 160x384 (height x width)") from None
    wanted = (numbers[0], numbers[-1])
    rows = []
    for name, config in PRESETS.items():
        small = max(config.image_size) < 64 <= max(wanted)
        fits = all(n % s == 0 for n, s in zip(wanted, config.stride, strict=True))
        shown = config.image_size if small or not fits else wanted
        row = dataclasses.replace(config, image_size=shown, channels=channels, outputs=outputs)
        rows.append(
            {
                "model": name,
                "parameters": _parameters_of(row),
                "macs": count_macs(row, *shown),
                "size": shown,
                "grid": row.grid(*shown),
            }
        )
    return rows


def _parameters_of(config: ModelConfig) -> int:
    """What `count_parameters` gives for its model, from a block and from two: each further one adds the same."""
    with torch.device("meta"):
        one, two = (count_parameters(VisionTransformer(dataclasses.replace(config, depth=d))) for d in (1, 2))
    return one + (config.depth - 1) * (two - one)


def make_blocks(config: ModelConfig) -> tuple[nn.ModuleList, int]:
    """The blocks of the encoder, and the width of the tokens that leave them."""
    if config.ablation:
        return ablations.make_blocks(config)
    return nn.ModuleList(EncoderBlock(config, layer) for layer in range(config.depth)), config.width


def make_tokenizer(config: ModelConfig) -> PatchEmbedding | ConvolutionStem | TokensToToken | ConvolutionTokens:
    """The tokenizer of a config."""
    if config.tokenizer == "patch":
        return PatchEmbedding(config)
    if config.tokenizer == "stem":
        return ConvolutionStem(config)
    return ConvolutionTokens(config) if config.token_kind == "convolution" else TokensToToken(config)
