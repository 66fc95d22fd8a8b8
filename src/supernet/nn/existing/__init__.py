"""Models that were written without choices, made searchable."""

from supernet.nn.existing.choose import choose
from supernet.nn.existing.elastic import elastic
from supernet.nn.existing.importance import sort_channels

__all__ = ["choose", "elastic", "sort_channels"]
