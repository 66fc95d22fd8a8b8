"""Search spaces, their architectures, and the plain networks that these describe."""

from supernet.nn.domain import Decision, Domain
from supernet.space.files import load_architecture, save_architecture
from supernet.space.freeze import fixed_architecture, freeze
from supernet.space.profile import SpaceProfile
from supernet.space.require import require
from supernet.space.space import Architecture, SearchSpace
from supernet.space.summary import NetworkSize, SpaceSummary

__all__ = [
    "Architecture",
    "Decision",
    "Domain",
    "NetworkSize",
    "SearchSpace",
    "SpaceProfile",
    "SpaceSummary",
    "fixed_architecture",
    "freeze",
    "load_architecture",
    "require",
    "save_architecture",
]
