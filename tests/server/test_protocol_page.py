"""docs/protocol.md and the codes of errors."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from server.codes import MEANINGS, ErrorCode
from server.protocol_page import page

ROOT = Path(__file__).parents[2]


def test_the_page_is_that_of_the_models() -> None:
    written = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    assert written == page(), "write it anew: python -m server.protocol_page > docs/protocol.md"


def test_every_code_has_a_meaning() -> None:
    assert set(get_args(ErrorCode)) == set(MEANINGS)


def test_the_page_describes_no_answer_that_is_not_ours() -> None:
    """FastAPI describes its own body for 422 unless every route has another one."""
    assert "ValidationError" not in page()
