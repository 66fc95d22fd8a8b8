"""Models that were written without choices, made searchable."""

from supernet.nn.existing.elastic import elastic

__all__ = ["elastic"]
