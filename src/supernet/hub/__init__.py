"""Published search spaces, and what they are made of."""

from supernet.hub.darts import darts_candidates, darts_operation

__all__ = ["darts_candidates", "darts_operation"]
