"""Makes engines of a run: PyTorch's at once, OpenVINO's and ONNX Runtime's from files that are kept in its folder."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.data.cache import cache_root, remove_forsaken
from vitreous.data.preprocess import Size, resize
from vitreous.errors import InputError
from vitreous.infer.card import Card, Seen, identity
from vitreous.infer.engines import Engine, TorchEngine
from vitreous.infer.files import FORMATS, Format, format_of, open_export
from vitreous.infer.graph import export_graphs
from vitreous.infer.quantize import PICTURES, quantized
from vitreous.infer.sample import own_pictures

if TYPE_CHECKING:
    from vitreous.infer.judge import Judge
    from vitreous.infer.predictor import Predictor

TEMPORARY = ".making-"  # the beginning of a folder's name
FOLDER = "engines"  # in the run directory
MOST_SEEN = 48 << 20  # bytes of digests, of almost four million pictures; of more a file knows none


def build(predictor: "Predictor", name: str, precision: str, judge: "Callable[[], Judge]") -> Engine:
    """An engine of a run; a judge is asked for where int8 is made anew.

    Raises `InputError` where it cannot be had: int8 takes pictures of the run to calibrate with.
    """
    format = next((format for format in FORMATS if format.engine == name), None)
    if format is None:
        return TorchEngine(predictor.model, predictor.spec, predictor.device, precision, name == "compiled")
    merged = f"-merge-{predictor.options.merge}" if predictor.options.merge else ""
    path = folder_of(predictor) / f"{name}-{precision}{merged}{format.suffix}"
    if path.exists():
        with suppress(InputError):  # damaged, or of another version
            card, engine = open_export(path, predictor.threads)
            if identity(card.origin, card.spec) == predictor.identity:
                return engine
    path.parent.mkdir(parents=True, exist_ok=True)
    write_export(predictor, path, precision, judge, thorough=False)
    return open_export(path, predictor.threads)[1]


def folder_of(predictor: "Predictor") -> Path:
    """Where a run's engines are kept: in its folder, or where that may not be written to among the user's caches."""
    own = predictor.run.path / FOLDER
    if os.access(own if own.exists() else own.parent, os.W_OK) and (own.is_dir() or not own.exists()):
        return own
    return cache_root() / FOLDER / predictor.origin["weights"]


def write_export(
    predictor: "Predictor", path: Path, precision: str, judge: "Callable[[], Judge]", thorough: bool = True
) -> None:
    """Writes the run's model to a file, .onnx or .zip; in int8 smoothed or not, whichever a judge finds better. Where
    it is not to be `thorough`, what is not smoothed will do if it holds the bar.

    Raises `InputError` where int8 is asked for without pictures of the run.
    """
    format, card = format_of(path), _card(predictor, precision)
    assert format is not None
    if precision != "int8":
        return format.write(path, _graphs(predictor, format), card)
    own = judge()
    pictures = own_pictures(predictor, "train", PICTURES, predictor.options.data).pixels
    for size in set(predictor.spec.sizes) - pictures.keys():  # a rare one
        pictures[size] = np.stack([resize(picture, size) for picture in next(iter(pictures.values()))])
    remove_forsaken(path.parent, f"{TEMPORARY}*")
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
        found = []
        for smooth in (False, True):
            tried = Path(folder) / f"{'smooth' if smooth else 'plain'}{path.suffix}"
            made = {size: quantized(one, pictures[size], smooth) for size, one in _graphs(predictor, format).items()}
            format.write(tried, made, card)
            agreement = own.agreement(open_export(tried, predictor.threads)[1])
            lost = 1 - (agreement.same or 0) if agreement.loss is None else agreement.loss
            found.append((lost, agreement.shift, tried))
            if not thorough and agreement.holds(predictor.options.bar):
                break
        os.replace(min(found)[-1], path)
    return None


def _graphs(predictor: "Predictor", format: Format) -> dict[Size, Any]:
    """The model's graphs in a format, a size each; copies, since what is done with them changes them."""
    if format.name not in predictor.converted:
        programs = export_graphs(predictor.model, predictor.spec, predictor.task, predictor.calibration)
        predictor.converted[format.name] = {size: format.convert(program) for size, program in programs.items()}
    return {size: format.copy(graph) for size, graph in predictor.converted[format.name].items()}


def _card(predictor: "Predictor", precision: str) -> Card:
    parts = predictor.spec, predictor.task, predictor.calibration
    seen = predictor.seen if sum(map(len, vars(predictor.seen).values())) <= MOST_SEEN else Seen()
    return Card(*parts, precision, predictor.mirrored, predictor.columns, predictor.origin, seen)
