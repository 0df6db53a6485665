"""The web page, served from the installed `clients` package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_NOT_SERVED = {"node_modules", "__pycache__"}


def web_folder() -> Path | None:
    """`clients/web`, beside this package or wherever it is installed; None when it is not."""
    try:
        folder = Path(str(files("clients"))) / "web"
    except (ModuleNotFoundError, TypeError):
        return None
    return folder if (folder / "index.html").is_file() else None


def pages(folder: Path | None) -> dict[str, Path]:
    """The files that are served, by URL path without the leading slash; `` is index.html."""
    if folder is None:
        return {}
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in MEDIA_TYPES and path.is_file() and not _hidden(path.relative_to(folder))
    }
    return {"": found["index.html"], **found}


def _hidden(path: Path) -> bool:
    parts = set(path.parts)
    return bool(parts & _NOT_SERVED) or any(part.startswith(".") for part in parts) or path.name.endswith(".test.js")
