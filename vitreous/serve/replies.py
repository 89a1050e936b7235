"""What a server says: answers in JSON, and why it has none."""

import json
import math
from itertools import islice
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from vitreous.infer.predictor import Prediction


class Refused(Exception):  # noqa: N818
    """Why a request is not answered: the status, what was expected, and after how many seconds to try again."""

    def __init__(self, status: int, message: str, retry: float | None = None, close: bool = False):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {} if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
        if close:
            self.headers["Connection"] = "close"


class Answer(BaseModel):
    """The answer to one picture. What the kind of the model has no use for is not there."""

    picture: str  # its name, as it was sent
    kind: str  # "classification", "multilabel" or "regression"
    label: str = ""  # the most probable class
    labels: list[str] = []  # of probability one half or more
    probabilities: dict[str, float] = {}  # calibrated, the most probable first
    plausible: list[str] = []  # classes that hold the truth in 90 % of pictures
    unsure: bool = False  # whether these are more than one
    values: dict[str, float | None] = {}  # of a regression
    units: dict[str, str] = {}
    intervals: dict[str, tuple[float, float]] = {}  # that hold the truth in 90 %, where they are known
    error: str = ""  # why there is no answer


class Answers(BaseModel):
    """An answer a picture, in the order in which they were sent."""

    answers: list[Answer]


class Faith(BaseModel):
    """How far a map can be believed: it scores 0 where it knows nothing, and more the more faithful it is."""

    score: float
    chance: float  # the scores of random maps stay within ± this
    edges: float  # the score of a map of the picture's edges, which knows no model


class Map(BaseModel):
    """Which parts of a picture an answer rests on."""

    answer: Answer  # of the run's model as it was trained, in fp32 and one view: what predicts may be another engine
    target: str  # the class, label or number that is explained
    method: str
    line: str  # what the method does
    note: str  # what must be known of this map
    grid: tuple[int, int]  # of the tokens: rows, columns
    map: list[list[float]]  # a row of tokens after the other; above 0 for the target, below 0 against it
    faithfulness: Faith
    seen: str  # a PNG in base64: the picture as the model sees it
    overlay: str  # a PNG in base64: the map on the picture


class Fault(BaseModel):
    """Why there is no answer."""

    error: str


def as_reply(prediction: Prediction, top: int) -> dict[str, Any]:
    """A prediction, ready for JSON, with the `top` most probable classes."""
    base = {"picture": prediction.picture, "kind": prediction.kind}
    if prediction.error:
        return base | {"error": prediction.error}
    if prediction.kind == "regression":
        values = {name: value if math.isfinite(value) else None for name, value in prediction.values.items()}
        known = {name: both for name, both in prediction.intervals.items() if all(map(math.isfinite, both))}
        return base | {"values": values, "units": prediction.units, "intervals": known}
    best = {"probabilities": dict(islice(prediction.probabilities.items(), top))}
    if prediction.kind == "multilabel":
        return base | {"labels": prediction.labels} | best
    return base | {"label": prediction.label} | best | {"plausible": prediction.plausible, "unsure": prediction.unsure}


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, headers, "application/json")
