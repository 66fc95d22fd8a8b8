"""What a card cannot say is refused before a file is written."""

import numpy as np
import pytest
import torch
from torch import nn

from supernet.deploy import export_network
from supernet.errors import ExportError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": 0.9}, "metrics of a card are finite numbers by name, such as .*, not 0.9"),
        ({"architecture": 5}, "architecture is a dict or None, not 5"),
        ({"costs": 5}, "costs is a dict or None, not 5"),
        ({"limits": 5}, "limits are a dict such as .*, or Limits, not 5"),
        ({"metrics": {"accuracy": np.ones(2)}}, "finite numbers by name, and 'accuracy' is array"),
        (
            {"architecture": {"op": {1, 2}}},
            "the card holds what JSON has, and .*; give the architecture as trainers do",
        ),
    ],
)
def test_what_a_card_cannot_say_leaves_no_file(given, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_network(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "net.safetensors", "safetensors", **given)
    assert not list(tmp_path.iterdir())
