"""The picture that chapters 1 to 4 look at, drawn by rule."""

import numpy as np

BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16
SHADES = 9
MOON, SHORE = (13, 66), 46  # (row, column); the row where the lake begins
STARS = ((3, 9), (7, 24), (2, 38), (11, 45), (5, 52), (14, 14), (4, 87), (12, 92), (17, 31), (9, 79))
Summits = tuple[tuple[int, int], ...]  # (column, row)


def mountain() -> np.ndarray:
    """Mountains at dusk over a lake, as pixel art: (60, 100) float32 in nine shades from 0, dark, to 1, bright."""
    y, x = np.mgrid[:60, :100]
    light = 0.75 - 0.0165 * np.abs(y - 30) - 0.0025 * np.abs(x - MOON[1])  # dusk, brightest at the horizon
    light = np.floor(light * (SHADES - 1) + BAYER[y % 4, x % 4]) / (SHADES - 1)
    light[tuple(zip(*STARS, strict=True))] += 0.375
    light[np.hypot(y - MOON[0], x - MOON[1]) < 7.5] = 1
    light = before(light, ((16, 25), (52, 21), (90, 27)), slope=0.5, shade=0.5, lit=0.625)
    light = before(light, ((32, 25), (78, 30)), slope=0.72, shade=0.25, lit=0.375)
    light = before(light, ((-4, 31), (104, 32)), slope=0.5, shade=0, lit=0.125)
    mirrored = light[(2 * SHORE - y).clip(0, SHORE), (x + np.round(2 * np.sin(1.9 * y)).astype(int)).clip(0, 99)]
    light = np.where(y > SHORE, (mirrored - 0.125).clip(0, 0.5), light)
    glitter = (np.abs(x - MOON[1] - 2 * np.sin(1.9 * y)) < 2 + 0.4 * (y - SHORE)) & (y % 3 == 1) & (y > SHORE)
    return np.where(glitter, 0.875, light).astype(np.float32)


def before(light: np.ndarray, summits: Summits, slope: float, shade: float, lit: float) -> np.ndarray:
    """The picture with a ridge before it, lit where it faces the moon."""
    y, x = np.mgrid[:60, :100]
    columns, rows = np.array(summits).T[..., None, None]
    flanks = rows + slope * np.abs(x - columns) + np.sin(0.9 * x + rows) + 1.4 * np.sin(0.31 * x + columns)
    summit = np.take_along_axis(columns, flanks.argmin(0)[None], 0)[0]
    facing = (x - summit + 2.5 * np.sin(0.7 * y)) * np.sign(MOON[1] - summit) > 0
    return np.where(y >= flanks.min(0), np.where(facing, lit, shade), light)
