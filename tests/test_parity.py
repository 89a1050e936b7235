"""Public implementations: their weights, opened here, answer what theirs did (golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitreous.model import ablations
from vitreous.model.position import sinusoid
from vitreous.model.vit import VisionTransformer
from vitreous.model.weights import import_weights

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text("utf-8"))
WEIGHTS = sorted(
    file.name for name in CASES for file in GOLDEN.glob(f"{name}.*") if not file.name.endswith(".expected.safetensors")
)
TOLERANCE = 1e-5


def case_of(file: str) -> str:
    return file.split(".")[0]


def opened(file: str) -> tuple[VisionTransformer, dict[str, torch.Tensor]]:
    hints: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in CASES[case_of(file)]["hints"].items()
    }
    model = import_weights(GOLDEN / file, say=lambda line: None, **hints)
    return model, load_file(GOLDEN / f"{case_of(file)}.expected.safetensors")


def stages(model: VisionTransformer, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the reference implementations were asked for, by the names of the golden files."""
    tokens, _ = model.tokenizer(pixels)
    encoded = model.encode(pixels)
    table = model.state_dict().get("position.tables.0.table")
    return {
        "logits": model(pixels),
        "features": encoded if model.config.norm_after_pool else model.norm(encoded),
        "t2t_tokens": tokens,
        "tokens": tokens,
        **({} if table is None else {"pos_embed": table[None]}),
    }


def test_every_case_has_its_files():
    assert len(CASES) == 19
    assert {case_of(file) for file in WEIGHTS} == set(CASES)
    assert {file for file in WEIGHTS if not file.endswith(".safetensors")} == {
        "google_vit.npz",
        "paper_t2t_performer.pth.tar",
        "paper_t2t_transformer.pth.tar",
    }


@pytest.mark.parametrize("file", WEIGHTS)
def test_answers_are_those_of_the_public_implementation(file, monkeypatch):
    row = CASES[case_of(file)]
    monkeypatch.setattr(ablations, "DENSE_GROWTH", row["config"].get("growth_rate", ablations.DENSE_GROWTH))
    model, expected = opened(file)
    pixels = expected["input"]
    assert list(pixels.shape) == row["input"]
    assert set(row["expected"]) == set(expected)
    with torch.no_grad():
        got = stages(model, pixels)
    for name in set(expected) - {"input"}:
        assert got[name].shape == expected[name].shape
        assert (got[name] - expected[name]).abs().max().item() <= TOLERANCE, name


@pytest.mark.parametrize("file", ["timm_vit.safetensors", "paper_t2t_transformer.pth.tar"])
def test_answers_are_the_same_while_training(file):
    """Gradients asked for: another attention kernel."""
    model, expected = opened(file)
    assert (model.train()(expected["input"]) - expected["logits"]).abs().max().item() <= TOLERANCE


def test_the_sinusoid_is_that_of_the_article():
    [table] = load_file(GOLDEN / "article_sinusoid_176x768.safetensors").values()
    assert (sinusoid(176, 768) - table.squeeze()).abs().max().item() <= TOLERANCE
