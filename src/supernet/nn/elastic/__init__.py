"""Elastic layers: torch's own, in which a `ValueChoice` or an expression may stand wherever a number may."""

from supernet.nn.elastic.linear import Linear

__all__ = ["Linear"]
