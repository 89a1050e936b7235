"""The soft splits of the tokens-to-token module as an animation."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from vitreous.errors import InputError
from vitreous.insight.measures import Components, displayable, levels
from vitreous.insight.trace import trace
from vitreous.model.config import split_length, split_padding, split_stride
from vitreous.model.vit import VisionTransformer
from vitreous.training.figures import BLUES, INK, MUTED, ORANGE

LINES = (INK, MUTED, ORANGE, "#f6f6f6", "#d0d0d0")  # colours of frames that stay as they are


def soft_split_corners(height: int, width: int, kernel: int) -> np.ndarray:
    """(gh, gw, 2) row and column of the upper left corner of each window; the padding around a picture is below 0."""
    stride, padding = split_stride(kernel), split_padding(kernel)
    rows, columns = (np.arange(split_length(side, kernel)) * stride - padding for side in (height, width))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)


def soft_split_frames(model: VisionTransformer, pixels: Tensor, most: int = 72) -> list[np.ndarray]:
    """Frames (h, w, 3) uint8 of the soft splits of one picture (1, C, H, W), at most `most` of them.

    The window moves over the padded picture, later over the grid of tokens (in the colours of their first three
    principal components); beside it are the numbers in the window, and the tokens made so far, a row each. The first
    tokens of each split are all shown, of the others some. Raises `InputError` for a model without soft splits.
    """
    stages = trace(model, pixels, layers=[], what=["after"]).stages
    if not stages:
        raise InputError("this model has no soft splits: expected tokenizer t2t with transformers or performers")
    image, frames = displayable(pixels)[0], []
    for number, stage in enumerate(stages):
        H, W = image.shape[:2]
        corners = soft_split_corners(H, W, stage.kernel).reshape(-1, 2)
        N, each = len(corners), max(2, most // len(stages))
        slow = each // 3
        later = np.linspace(slow, N - 1, each - slow).round().astype(int)
        shown = range(N) if each >= N else [*range(slow), *later.tolist()]
        title, unit = f"Soft split {number + 1} of {len(stages)}", "tokens" if number else "pixels"
        scene = _Scene(image, stage.windows[0].float().cpu().numpy(), corners, stage.kernel, title, unit)
        frames += [scene.frame(token) for token in shown]
        if stage.layer is not None:
            tokens = stage.layer.after[0].unflatten(0, stage.grid).float().cpu().numpy()
            image = (255 * Components.fit(tokens).colours(tokens)).round().astype(np.uint8)
    return frames


def write_frames(frames: Sequence[np.ndarray], path: str | Path, milliseconds: int = 120) -> None:
    """Frames as an animated GIF that repeats, the last held longer."""
    flat = Image.fromarray(np.concatenate([frame[::2, ::2] for frame in frames[:: max(1, len(frames) // 9)]]))
    colours = np.array(flat.quantize(230).getpalette()).reshape(-1, 3)  # one palette: what stands still costs nothing
    colours[colours.min(1) > 247] = 255  # white stays white
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for c in ("white", *LINES) for part in ImageColor.getrgb(c)] + colours.ravel().tolist())
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * (len(images) - 1) + [max(milliseconds, 2000)]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True)


class _Scene:
    """A soft split on a canvas: the picture on the left, the window in the middle, the tokens on the right."""

    def __init__(self, image: np.ndarray, windows: np.ndarray, corners: np.ndarray, kernel: int, title: str, unit: str):
        (H, W), (N, columns), k, p = image.shape[:2], windows.shape, kernel, split_padding(kernel)
        self.corners, self.kernel = corners + p, kernel
        self.padded = np.pad(image, ((p, p), (p, p), (0, 0)), constant_values=208)
        self.covered = np.full(self.padded.shape[:2], N)  # by which token first
        for token in reversed(range(N)):
            y, x = self.corners[token]
            self.covered[y : y + k, x : x + k] = token
        side, (height, width) = 320, self.padded.shape[:2]
        scale = side / max(height, width)
        self.scale = math.floor(scale) if scale > 3 else scale
        self.size = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        self.corner = 20 + (side - self.size[0]) // 2, 44 + (side - self.size[1]) // 2
        small = Image.fromarray(windows.astype(np.float32)).resize((250, side), Image.Resampling.BOX)
        self.rows = (255 * BLUES(levels(np.asarray(small)))[..., :3]).round().astype(np.uint8)
        self.canvas = Image.new("RGB", (760, 400), "white")
        draw = ImageDraw.Draw(self.canvas)
        draw.text((20, 12), title, INK, _font(17, bold=True))
        apart = f"windows of {k}×{k}, {split_stride(k)} {unit} apart, padding {p}"
        draw.text((200, 15), apart, MUTED, _font(14))
        C = columns // k**2
        draw.text((20, 372), f"{H}×{W} {unit} of {C} number{'s' * (C > 1)}, padded", MUTED, _font(13))
        draw.text((364, 246), f"{C}×{k}×{k} =\n{columns:,} numbers", MUTED, _font(13))

    def frame(self, token: int) -> np.ndarray:
        """The window at a token, and all tokens up to it."""
        canvas = self.canvas.copy()
        draw = ImageDraw.Draw(canvas)
        N, k, (y, x), (left, top) = len(self.corners), self.kernel, self.corners[token], self.corner
        faded = 255 - (255 - self.padded) // 3
        image = Image.fromarray(np.where(self.covered[..., None] <= token, self.padded, faded))
        smooth = Image.Resampling.NEAREST if self.scale == int(self.scale) else Image.Resampling.BICUBIC
        canvas.paste(image.resize(self.size, smooth), self.corner)
        ends = [left + x * self.scale, top + y * self.scale, left + (x + k) * self.scale, top + (y + k) * self.scale]
        draw.rectangle([ends[0] - 2, ends[1] - 2, ends[2] + 1, ends[3] + 1], outline=ORANGE, width=2)

        window = Image.fromarray(self.padded[y : y + k, x : x + k])
        canvas.paste(window.resize((104, 104), Image.Resampling.NEAREST), (364, 132))
        draw.rectangle([362, 130, 469, 237], outline=ORANGE, width=2)

        made = math.ceil((token + 1) * len(self.rows) / N)
        rows = np.full_like(self.rows, 246)
        rows[:made] = self.rows[:made]
        canvas.paste(Image.fromarray(rows), (490, 44))
        line, thick = 44 + int(token * len(self.rows) / N), max(2, round(len(self.rows) / N))
        draw.line([470, 184, 486, line + thick // 2], fill=ORANGE, width=2)
        draw.rectangle([486, line - 1, 743, line + thick], outline=ORANGE)
        draw.text((490, 372), f"token {token + 1:,} of {N:,}", INK, _font(13))
        return np.asarray(canvas)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(f"DejaVu Sans{':bold' if bold else ''}"), size)
