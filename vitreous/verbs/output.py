"""What verbs print."""

from typing import Any

from vitreous.infer.predictor import Prediction
from vitreous.infer.tables import as_json
from vitreous.training.torchrun import of_environment


def speaks() -> bool:
    """Whether this process is the one that speaks: the first of those that torchrun started, or the only one."""
    return of_environment().first


def print_json(values: Any) -> None:
    """A line for machines, at once."""
    print(as_json(values), flush=True)


def answer_line(prediction: Prediction, top: int) -> str:
    """An answer as a line for people, with the `top` most probable classes."""
    if prediction.kind == "classification":
        best = ", ".join(f"{name} {p:.1%}" for name, p in list(prediction.probabilities.items())[:top])
        doubt = f"   unsure: {' or '.join(prediction.plausible[:5])}{' or …' if len(prediction.plausible) > 5 else ''}"
        return f"{prediction.picture}   {best}{doubt if prediction.unsure else ''}"
    if prediction.kind == "multilabel":
        found = ", ".join(f"{name} {prediction.probabilities[name]:.1%}" for name in prediction.labels)
        return f"{prediction.picture}   {found or 'no label'}"
    parts = []
    for name, value in prediction.values.items():
        low, high = prediction.intervals.get(name, (None, None))
        between = "no interval: too few validation pictures" if low is None else f"{low:.4g} to {high:.4g}"
        unit = prediction.units[name]
        parts.append(f"{name} {value:.4g} ({between}){' ' + unit if unit and unit not in name else ''}")
    return f"{prediction.picture}   {', '.join(parts)}"
