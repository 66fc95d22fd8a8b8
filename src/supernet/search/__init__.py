"""Searching a space by a score of its architectures."""

from supernet.search.evolution import Scored, evolve

__all__ = ["Scored", "evolve"]
