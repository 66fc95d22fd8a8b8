"""What a frozen network costs, counted on the network itself."""

import copy

from torch.utils.flop_counter import FlopCounterMode

from supernet import freeze
from supernet.space.summary import called_with, moved


def macs_of(network, example):
    """Of a copy on the device "meta", where attention is made of products, which the counter knows on every machine."""
    with FlopCounterMode(display=False) as counter:
        called_with(copy.deepcopy(network).to("meta").eval(), moved(example, "meta"))
    return counter.get_total_flops() // 2


def costs_of_frozen(model, architecture, example):
    """Return parameters, multiply-accumulates, and bytes of weights."""
    network = freeze(model, architecture)
    state = {t.data_ptr(): t for t in [*network.parameters(), *network.state_dict().values()]}
    return (
        sum(p.numel() for p in network.parameters()),
        macs_of(network, example),
        sum(t.numel() * t.element_size() for t in state.values()),
    )
