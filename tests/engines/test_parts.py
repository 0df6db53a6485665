"""A block's graph in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

import engines.openvino
from engines.openvino import OpenVINOEngine
from engines.parts import POSE, cut, in_turns
from engines.store import ArtefactStore
from streamgen.student import Student, step_graph


def _names(model: ov.Model) -> set[str]:
    return {taken.get_any_name() for taken in model.inputs}


@pytest.mark.parametrize(("steps", "turned"), [(1, False), (1, True), (2, True)])
def test_the_parts_together_make_what_the_whole_makes(sink_student: Student, steps: int, turned: bool) -> None:
    """Bit for bit; and what costs something is made once."""
    core, graph = ov.Core(), str(sink_student.file(step_graph(steps)))
    whole = core.read_model(graph)
    latents, frames, cache = cut(core.read_model(graph))
    assert _names(frames) == {"latents"}
    handed = {"latents", *(name for output in latents.outputs for name in output.get_names())}
    assert _names(latents) <= _names(whole) and _names(cache) <= _names(whole) | handed
    assert "noise" not in _names(cache)
    turns = in_turns(latents) if turned else [latents]
    if turned:
        assert len(turns) == 2 * steps + 1
        posed = [any(POSE in node.get_friendly_name() for node in part.get_ops()) for part in turns]
        assert posed == [True] + 2 * steps * [False]
        # What puts latents together multiplies no matrices.
        assert not any(op.get_type_name() in ("Convolution", "MatMul") for part in turns[2::2] for op in part.get_ops())
    rng = np.random.default_rng(0)
    known = {taken.get_any_name(): rng.standard_normal(taken.shape, np.float32) for taken in whole.inputs}
    known["visible"] = np.ones_like(known["visible"])
    products = []
    results = []
    for models in ((whole,), (*turns, frames, cache)):
        made = dict(known)
        for model in models:
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            values = compiled({name: made[name] for name in _names(model)})
            made |= {name: value for output, value in values.items() for name in output.get_names()}
        products.append(sum(op.get_type_name() in ("Convolution", "MatMul") for m in models for op in m.get_ops()))
        results.append(made)
    for name in ("latents", "frames", "new_k", "new_raw_k", "new_v"):
        assert np.array_equal(results[0][name], results[1][name]), name
    assert products[0] == products[1]


def test_what_other_code_compiled_is_compiled_again(
    plain_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def artefacts() -> int:
        OpenVINOEngine(plain_student, precision="fp32", store=ArtefactStore(tmp_path))
        return len(list(tmp_path.glob("*.bin")))

    first = artefacts()
    assert artefacts() == first
    monkeypatch.setattr(engines.openvino, "_CODE", "0" * 64)
    assert artefacts() == 2 * first
