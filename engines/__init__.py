"""Runtimes for a student's step and decoder behind one protocol."""

import sys

# OpenVINO reports that it was imported to Google Analytics, unless the package that does it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
