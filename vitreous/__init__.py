"""A Vision Transformer you can see through. The public names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitreous.data.doctor import check_data as check
    from vitreous.errors import InputError
    from vitreous.infer.evaluation import Evaluation, evaluate
    from vitreous.infer.export import Export, export
    from vitreous.infer.predictor import AnswerConfig, Prediction, Predictor, load
    from vitreous.insight.explain import Explanation, explain
    from vitreous.insight.trace import Trace, trace
    from vitreous.model.config import ModelConfig
    from vitreous.model.presets import PRESETS
    from vitreous.model.vit import VisionTransformer, create
    from vitreous.model.weights import import_weights
    from vitreous.training.train import train

_HOMES = {
    "AnswerConfig": "infer.predictor",
    "Evaluation": "infer.evaluation",
    "Explanation": "insight.explain",
    "Export": "infer.export",
    "InputError": "errors",
    "ModelConfig": "model.config",
    "PRESETS": "model.presets",
    "Prediction": "infer.predictor",
    "Predictor": "infer.predictor",
    "Trace": "insight.trace",
    "VisionTransformer": "model.vit",
    "check": "data.doctor:check_data",
    "create": "model.vit",
    "evaluate": "infer.evaluation",
    "explain": "insight.explain",
    "export": "infer.export",
    "import_weights": "model.weights",
    "load": "infer.predictor",
    "trace": "insight.trace",
    "train": "training.train",
}
__all__ = [
    "PRESETS",
    "AnswerConfig",
    "Evaluation",
    "Explanation",
    "Export",
    "InputError",
    "ModelConfig",
    "Prediction",
    "Predictor",
    "Trace",
    "VisionTransformer",
    "check",
    "create",
    "evaluate",
    "explain",
    "export",
    "import_weights",
    "load",
    "trace",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitreous' has no attribute {name!r}")
    home, _, called = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"vitreous.{home}"), called or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
