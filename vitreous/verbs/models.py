"""models and import: what a training can begin with."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vitreous.errors import InputError
from vitreous.training.journal import Journal
from vitreous.verbs.options import Json
from vitreous.verbs.output import print_json


def models(*, size: str = "224", channels: int = 3, outputs: int = 1000, json: Json = False) -> int:
    """Lists the models with parameters, multiply-accumulates a picture, and tokens.

    Args:
        size: Of the pictures: 224 or 160x384 (height x width); small models that do not suit it show their own size.
        channels: Of the pictures.
        outputs: Classes, labels or numbers.
    """
    from rich.table import Table

    from vitreous.model.vit import describe_presets

    rows = describe_presets(size, channels, outputs)
    if json:
        print_json(rows)
        return 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("model", "parameters", "GMACs", "picture", "tokens"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        (height, width), (gh, gw) = row["size"], row["grid"]
        table.add_row(
            row["model"],
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['macs'] / 1e9:.3g}",
            f"{height}×{width}",
            f"{gh}×{gw} = {gh * gw:,}",
        )
    Journal().console.print(table)
    return 0


def import_checkpoint(
    checkpoint: Annotated[Positional[Path], arg(help="A file, or a folder of transformers.", metavar="CHECKPOINT")],
    /,
    *,
    out: Path,
    names: Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    format: str = "auto",
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    outputs: int | None = None,
    channels: int | None = None,
    hint: tuple[str, ...] = (),
    json: Json = False,
) -> int:
    """Makes a run directory of a classifier's weights: timm, DeiT, DINOv2, transformers, torchvision, Google, T2T-ViT.

    Args:
        out: The run directory to make.
        names: A text file with the name of a class a line, in the order of the outputs.
        mean: What is taken from the pixels, a channel, in 0 to 1; default: ImageNet's.
        std: What they are divided by then.
        format: auto tells it by the names: timm, t2t, series, transformers, torchvision, google.
        heads: Of attention, which shapes do not tell; default: one for 64 columns.
        image_size: Height and width, for a position table that is not square; another size resamples the table.
        outputs: A fresh head with so many.
        channels: Adapt the first layer to so many.
        hint: What else shapes do not tell, as fields of ModelConfig: kernels=31,3,3 norm_eps=1e-5 value_skip=true.
    """
    from vitreous.infer.importing import import_run

    journal = Journal(stderr=json)
    given = {"heads": heads, "image_size": image_size, "outputs": outputs, "channels": channels}
    hints = {name: value for name, value in given.items() if value is not None} | dict(map(_hint, hint))
    lines = [line.strip() for line in names.read_text("utf-8").splitlines() if line.strip()] if names else ()
    run = import_run(checkpoint, out, names=lines, mean=mean, std=std, format=format, say=journal.say, **hints)
    if json:
        print_json({"run": str(run)})
    else:
        journal.say(f"run: {run}")
        journal.say(f"next: vitreous predict {run} PICTURES…")
    return 0


def _hint(text: str) -> tuple[str, Any]:
    """ "kernels=31,3,3" -> ("kernels", (31, 3, 3))."""
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"--hint {text}: expected NAME=VALUE, such as norm_eps=1e-5")

    def plain(part: str) -> Any:
        try:
            return jsonlib.loads(part)
        except ValueError:
            return part

    return name, tuple(plain(part) for part in value.split(",") if part) if "," in value else plain(value)
