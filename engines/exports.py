"""The graphs of engines that write into their cache: exported when first wanted, and kept."""

from __future__ import annotations

import hashlib
import logging
from importlib.util import find_spec
from pathlib import Path

import streamgen
from engines.protocol import EngineError
from engines.store import ArtefactStore
from streamgen.config import StudentConfig
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, SINKS_GRAPH, SPEECH_GRAPH, Student

log = logging.getLogger(__name__)

PRECISIONS = "fp32", "fp16", "bf16"
"""Of networks and cache."""
_MODELS = Path(streamgen.__file__).parent / "models"


def graph_names(config: StudentConfig) -> tuple[str, ...]:
    """The graphs that a student becomes."""
    sinks, speech = (SINKS_GRAPH,) if config.transformer.sink else (), (SPEECH_GRAPH,) if config.speech else ()
    return PASS_GRAPH, DECODE_GRAPH, *sinks, *speech


def exported(student: Student, rows: int, precision: str, store: ArtefactStore) -> dict[str, bytes]:
    """Graphs by name for `rows` rows, with weights in the student's folder. Raises EngineError where one is to be made
    and PyTorch is missing.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    config, names = student.config, graph_names(student.config)
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_MODELS.glob("*.py")))).hexdigest()
    keys = {name: (student.hash, f"{name}, {rows} rows in place, {precision}", code) for name in names}
    kept = {name: store.get(*key) for name, key in keys.items()}
    graphs = {name: graph for name, graph in kept.items() if graph is not None}
    if len(graphs) < len(names):
        if find_spec("torch") is None or find_spec("onnxscript") is None:
            raise EngineError(
                "the graphs of this engine are exported once for each student, which takes PyTorch: install streamgen "
                "with the extra `train`, or use engine openvino"
            )
        from streamgen.models.export import in_place_graphs

        log.info("exporting %s for %d rows in %s", config.name, rows, precision)
        graphs = in_place_graphs(student, rows, precision)
        for name, graph in graphs.items():
            store.put(graph, *keys[name])
    return graphs
