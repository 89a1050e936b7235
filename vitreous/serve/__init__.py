"""HTTP over a predictor, and its page."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitreous.errors import InputError

if TYPE_CHECKING:
    from vitreous.infer.predictor import Predictor
    from vitreous.serve.settings import Settings

EXTRA = ("fastapi", "starlette", "pydantic", "uvicorn", "h11", "python_multipart", "prometheus_client")


def serve(load: "Callable[[], Predictor]", settings: "Settings", started: Callable[[dict[str, Any]], None]) -> None:
    """Answers requests until the process is told to end: by SIGTERM, or by Ctrl-C.

    The address is taken first, then the predictor is loaded; `started` is told where it listens, and what answers.
    Raises `InputError` where the packages are not installed, or it may not or cannot listen there.
    """
    try:
        from vitreous.serve.server import run
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] not in EXTRA:
            raise
        raise InputError(f"{fault.name} is not installed here: pip install 'vitreous[serve]'") from None
    run(load, settings, started)
