"""`serve` as a process of its own, on the synthetic engine."""

from __future__ import annotations

import server.cli
from tests.server.synthetic import build_served

if __name__ == "__main__":
    server.cli.build_engine = build_served
    server.cli.serve()
