"""The shell of a page that is one file: what it shows, how it looks and what it does, and nothing from elsewhere.

Its policy lets the page ask for nothing: a style or a script runs because its hash is written in the page. An element
with a `style="…"` of its own is therefore left unstyled: use a class, or set it from the script.

What `base.css` knows: sections `<section class="part">` of a `<div class="rail">` (heading and words) and a
`<div class="body">` (what is shown); `.facts` (a `dl`), `.note`, `.muted`, `.number`, `.wide` around
a table that may be wider than the screen, `figure` with `figcaption`, `.button`, `.visually-hidden`.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
import zlib
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

MARKS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # what no HTML can hold
CONTROLS = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f-\x9f]")  # what HTML does not allow
LEVELS = {"u8": 255, "u4": 15}


def render(title: str, body: str, style: str = "", script: str = "", data: Any = None, allowed: str = "") -> str:
    """The page. `body` is HTML; `title` is text; `data` is what JSON can hold, and is `page.data` in the script.
    `allowed` goes on with the policy that lets a page ask for nothing, after its "img-src data:".

    `style` and `script` come after those of every page. Infinite numbers and NaN in `data` become null. The element
    that holds the data has the id "page-data", so that "data" is free for what the body shows.
    """
    style = asset("base.css") + style
    script = f"'use strict';\n(() => {{\n{asset('base.js')}\n{script}\n}})();\n"
    data = "" if data is None else f'<script type="application/json" id="page-data">{json_text(data)}</script>\n'
    values = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "allowed": allowed,
        "title": escape(title),
        "style": style,
        "body": body,
        "data": data,
        "script": script,
    }
    parts = asset("page.html").split("{{")
    return parts[0] + "".join(values[name] + rest for name, rest in (part.split("}}", 1) for part in parts[1:]))


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files("vitreous.insight").joinpath("assets", name).read_text(encoding="utf-8")


def escape(text: Any) -> str:
    """Text as it stands in HTML, between tags or in a quoted attribute. Control characters are left out."""
    return html.escape(CONTROLS.sub("", NOT_TEXT.sub("\ufffd", str(text))))


def json_text(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or opens a comment."""
    return json.dumps(_finite(data), allow_nan=False, separators=(",", ":")).translate(MARKS)


def png_uri(pixels: np.ndarray) -> str:
    """Pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 as the address of a PNG that holds it."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """The address of a file that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def packed(values: np.ndarray, dtype: str = "f16", span: float | None = None) -> dict[str, Any]:
    """An array for `unpack` in the script: shape, dtype, scale, and data in base64 of zlib.

    "f16" keeps 11 bits of each number. "u8" and "u4" keep whole numbers of 0 to 255 or 15, of which `scale` makes
    values: linear over 0 to `span` (the largest value). Where there are negative values `zero` is the number that
    stands for 0, and the span goes both ways. In "u4" the numbers are those of square roots, so that small values
    stay apart.
    """
    values = np.nan_to_num(np.asarray(values, np.float64), posinf=0, neginf=0)
    found: dict[str, Any] = {"shape": list(values.shape), "dtype": dtype, "scale": 1.0}
    if dtype == "f16":
        return found | {"data": compressed(values.clip(-65504, 65504).astype("<f2").tobytes())}
    span = float(span or np.abs(values).max(initial=0)) or 1.0
    if values.min(initial=0) < 0:
        found |= {"zero": 127, "scale": span / 127}
        return found | {"data": compressed((127 + np.rint(values.clip(-span, span) / span * 127)).astype(np.uint8))}
    found["scale"] = span / LEVELS[dtype]
    return found | {"data": compressed(quantised(values / span, dtype))}


def quantised(shares: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of 0 to 1 as "u8" or, two a byte and the first in the lower half, "u4": bytes in one dimension."""
    shares = shares.reshape(-1).clip(0, 1)
    if dtype == "u8":
        return np.rint(shares * 255).astype(np.uint8)
    codes = np.rint(np.sqrt(shares) * 15).astype(np.uint8)
    codes = np.concatenate((codes, np.zeros(codes.size % 2, np.uint8)))
    return codes[::2] | codes[1::2] << 4


def compressed(data: bytes | np.ndarray) -> str:
    """Bytes in base64 of zlib."""
    return base64.b64encode(zlib.compress(data if isinstance(data, bytes) else data.tobytes())).decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    return None if isinstance(data, float) and not math.isfinite(data) else data
