"""Frozen networks of each space of the hub as files, which give what the networks give for batches of any size."""

import pytest
import torch

from supernet import SearchSpace, export_network, freeze, load_network
from supernet.hub import (
    GPT,
    AutoFormer,
    Darts,
    FBNet,
    MobileNetV3,
    NasBench201,
    NasBenchMacro,
    ProxylessNas,
    ShuffleNetV2,
)

SPACE = {"width": (8, 12), "depth": (1, 2), "heads": (1, 2), "mlp_ratio": (1, 1.5)}
# Small settings: what makes the model, and the shape of a batch; of a GPT, of tokens.
SMALL = {
    "Darts": (lambda: Darts(4, channels=4, layers=3), (2, 3, 8, 8)),
    "NasBench201": (lambda: NasBench201(4, channels=4, cells=1), (2, 3, 8, 8)),
    "NasBenchMacro": (lambda: NasBenchMacro(4, channels=4, head_channels=8), (2, 3, 16, 16)),
    "ProxylessNas": (lambda: ProxylessNas(4, 1, (4, 4, 4, 8, 8), (2, 2), (1, 2, 2)), (2, 1, 8, 8)),
    "FBNet": (lambda: FBNet(4, 1, (4, 4, 8, 8), (2, 2), (1, 1, 2)), (2, 1, 8, 8)),
    "MobileNetV3": (lambda: MobileNetV3(4, 1, (8, 8, 8, 16, 16, 8), (1, 2), (1, 2, 2), dropout=0), (2, 1, 8, 8)),
    "ShuffleNetV2": (lambda: ShuffleNetV2(4, 1, (4, 8, 16, 16), (2, 2), stride=1, dropout=0), (2, 1, 8, 8)),
    "AutoFormer": (lambda: AutoFormer(SPACE, 3, 1, image_size=4, patch_size=2, head_dim=4), (2, 1, 4, 4)),
    "GPT": (lambda: GPT(SPACE, vocab_size=16, context_length=6, head_dim=4), (2, 5)),
}


def frozen(name):
    make, shape = SMALL[name]
    torch.manual_seed(0)
    model = make()
    space = SearchSpace(model)
    architecture = space.sample(torch.Generator().manual_seed(1))
    X = torch.randint(16, shape) if name == "GPT" else torch.randn(shape)
    return make, freeze(model, architecture), architecture, X


# One that moves channels about; the others take some seconds each.
QUICK = ("ShuffleNetV2",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_a_frozen_network_of_the_hub_runs_from_a_file_as_it_is(name, tmp_path):
    make, network, architecture, X = frozen(name)
    for format, suffix in (("onnx", "onnx"), ("torch.export", "pt2"), ("safetensors", "safetensors")):
        path = tmp_path / f"net.{suffix}"
        card = export_network(network, X, path, format, architecture=architecture)
        assert card["check"]["batch_sizes"] == [2, 3, 1]
        torch.manual_seed(5)
        loaded = load_network(path, make() if format == "safetensors" else None)
        with torch.no_grad():
            torch.testing.assert_close(loaded(X), network.eval()(X), atol=1e-4, rtol=1e-4)
