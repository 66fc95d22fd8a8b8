"""Searching a space by a score of its architectures."""

from supernet.search.evolution import EvolutionSearcher, evolve
from supernet.search.random_searcher import RandomSearcher
from supernet.search.searcher import Scored, Searcher, search
from supernet.search.supernet_evaluator import SupernetEvaluator

__all__ = ["EvolutionSearcher", "RandomSearcher", "Scored", "Searcher", "SupernetEvaluator", "evolve", "search"]
