"""Under torch.compile a path that changes is not compiled anew each step."""

import pytest
import torch
from torch import nn

import supernet
from supernet import Supernet, ValueChoice


@pytest.mark.slow  # torch's compiler takes seconds to be imported
@pytest.mark.filterwarnings("ignore")  # of torch's own, about what it deprecates inside
def test_a_path_that_changes_is_compiled_for_all_widths_at_once():
    width = ValueChoice([8, 16, 24, 32, 40], label="width")
    model = nn.Sequential(
        supernet.nn.Conv2d(3, width, 3), supernet.nn.BatchNorm2d(width), nn.Flatten(2), supernet.nn.LayerNorm(4)
    )
    running, x, graphs = Supernet(model), torch.randn(2, 3, 4, 4), []
    expected = {n: running(x, {"width": n}) for n in (8, 24, 32, 16, 40)}

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
        for n, output in expected.items():
            with running.following({"width": n}):
                torch.testing.assert_close(compiled(x), output)
    assert len(graphs) <= 2  # one, or another for the widest, which is the weight itself
