"""A student of the size of the public 1.3 B layout, exported and compiled end to end: `pytest -m slow`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamgen.student import PASS_GRAPH, SINKS_GRAPH

_SECONDS, _GIGABYTES = 300, 20

# A process of its own: its memory is measured. Text is left out, which the rollout does not take.
_BUILD = """
import json, resource, sys
from pathlib import Path
import torch
from engines.store import ArtefactStore
from engines.tensorrt.build import built
from streamgen.actions import WORLD_KEYS
from streamgen.config import AutoencoderConfig, StudentConfig, TransformerConfig
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import save_weights
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import WEIGHTS, Student, write_config

root = Path(sys.argv[1])
transformer = TransformerConfig(
    height=60, width=104, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30,
    action_dim=len(WORLD_KEYS), window=18, sink=3, block_size=3,
)
config = StudentConfig(
    name="large", fps=16.0, width=832, height=480, keys=WORLD_KEYS, step_plans={4: (1.0, 0.75, 0.5, 0.25)}, steps=4,
    transformer=transformer, vae=AutoencoderConfig(),
)
write_config(root / "large", config)
torch.manual_seed(0)
model = CausalVideoTransformer(transformer)
count = sum(parameter.numel() for parameter in model.parameters())
save_weights(model, root / "large" / "transformer" / WEIGHTS, torch.bfloat16)
del model
save_weights(Autoencoder(config.vae), root / "large" / "vae" / WEIGHTS, torch.bfloat16)
build = built(Student.from_pretrained(root / "large"), "sm_89", 1, "bf16", ArtefactStore(root / "store"))
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"parameters": count, "gigabytes": most, "tokens": transformer.tokens, **build.figures()}))
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * _SECONDS)
def test_the_public_layout_is_exported_and_compiled(tmp_path: Path) -> None:
    begun = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", _BUILD, str(tmp_path)], capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    assert process.returncode == 0, process.stderr[-4000:]
    figures = json.loads(process.stdout.splitlines()[-1])
    graphs = figures["graphs"]
    print({key: figures[key] for key in ("parameters", "gigabytes", "row_bytes")}, graphs[PASS_GRAPH], f"{took:.0f} s")
    assert figures["tokens"] == 1560 and figures["parameters"] > 1.1e9
    assert graphs[PASS_GRAPH]["attention"] == 30
    assert graphs[PASS_GRAPH]["cache_updates"] == 3 * 30 and graphs[SINKS_GRAPH]["cache_updates"] == 30
    assert graphs[PASS_GRAPH]["weights_bytes"] > 2 * 1.1e9
    assert figures["gigabytes"] < _GIGABYTES
    assert took < _SECONDS
