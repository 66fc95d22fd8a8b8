"""The engineer's whole way in `examples/fashion_mnist.py`, tried on few images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supernet.deploy import read_card

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "fashion_mnist.npz"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="shared/data/fashion_mnist.npz is not here")
def test_three_networks_within_limits_become_files_that_are_compared(tmp_path):
    pytest.importorskip("onnxruntime")
    few = ["--train", "512", "--valid", "256", "--test", "256", "--epochs", "1", "--evaluations", "4", "--seeds", "1"]
    command = [sys.executable, ROOT / "examples" / "fashion_mnist.py", DATA, *few, "--run-dir", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=900).stdout
    assert "463,684,824 networks" in output and "50 random networks" in output
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert len(rows) == 3 * 3 and all(row["parameters"] <= row["budget"]["parameters"] for row in rows)
    for number, most in enumerate((4_000, 8_000, 16_000)):
        card = read_card(tmp_path / f"network{number}.onnx")
        assert card["costs"]["parameters"] <= most and card["costs"]["latency_ms"] > 0
    assert {path.name for path in tmp_path.iterdir()} > {
        "front0.json",
        "front0.png",
        "comparison.png",
        "latencies.json",
    }
