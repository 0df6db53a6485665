"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$STREAMGEN_CACHE, or streamgen/ in $XDG_CACHE_HOME (~/.cache)."""
    if chosen := os.environ.get("STREAMGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamgen"
