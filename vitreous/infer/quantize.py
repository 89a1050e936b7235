"""int8 by post-training quantization (NNCF), calibrated on the user's own pictures."""

import contextlib
import io
import logging
from typing import Any

import numpy as np

from vitreous.infer.engines import import_quietly

PICTURES = 300  # to calibrate with
SMOOTH = 0.95  # how far the spread of activations moves into the weights (SmoothQuant, 2211.10438); -1: not at all


def quantized(graph: Any, pixels: np.ndarray, smooth: bool) -> Any:
    """An OpenVINO or ONNX model in int8, from one that takes pictures of one size, and pictures (n, H, W, C).

    Raises `InputError` where NNCF is not installed.
    """
    nncf = import_quietly("nncf")
    nncf.set_log_level(logging.ERROR)
    alpha = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH if smooth else -1)
    dataset = nncf.Dataset([{"pixels": picture[None]} for picture in pixels])
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            graph,
            dataset,
            subset_size=len(pixels),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=alpha),
        )
