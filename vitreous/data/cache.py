"""The user's cache folder, and what a process leaves that was killed as it filled a folder."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

FORSAKEN = 24 * 3600  # seconds without a write after which nobody fills a folder any more


def cache_root(cache: str = "auto") -> Path:
    """The folder of all caches: `cache` itself, $VITREOUS_CACHE, or the user's cache folder."""
    if cache != "auto":
        return Path(cache).expanduser()
    if named := os.environ.get("VITREOUS_CACHE"):
        return Path(named)
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "vitreous"


def remove_forsaken(root: Path, pattern: str) -> None:
    """Removes the folders that a process left which was killed as it filled them."""
    for half in root.glob(pattern):
        with suppress(OSError):  # it is done just now
            if max(path.stat().st_mtime for path in (half, *half.iterdir())) < time.time() - FORSAKEN:
                shutil.rmtree(half, ignore_errors=True)
