"""Published search spaces, and what they are made of."""

from supernet.hub.darts import (
    DARTS_V1,
    DARTS_V2,
    GDAS_V1,
    PC_DARTS_CIFAR,
    PC_DARTS_IMAGENET,
    Darts,
    darts_candidates,
    darts_network,
    darts_operation,
)

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "GDAS_V1",
    "PC_DARTS_CIFAR",
    "PC_DARTS_IMAGENET",
    "Darts",
    "darts_candidates",
    "darts_network",
    "darts_operation",
]
