"""Searching a space by a score of its architectures."""

from supernet.search.additive import AdditiveScore, FittedScore, fit_scores
from supernet.search.evolution import EvolutionSearcher, evolve
from supernet.search.front import Entry, Front
from supernet.search.integer_program import maximize
from supernet.search.process_workers import ProcessWorkers
from supernet.search.random_searcher import RandomSearcher
from supernet.search.ray_workers import RayWorkers
from supernet.search.searcher import Scored, Searcher, search
from supernet.search.searching import search_front
from supernet.search.supernet_evaluator import SupernetEvaluator

__all__ = [
    "AdditiveScore",
    "Entry",
    "EvolutionSearcher",
    "FittedScore",
    "Front",
    "ProcessWorkers",
    "RandomSearcher",
    "RayWorkers",
    "Scored",
    "Searcher",
    "SupernetEvaluator",
    "evolve",
    "fit_scores",
    "maximize",
    "search",
    "search_front",
]
