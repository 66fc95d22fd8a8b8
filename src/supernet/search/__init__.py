"""Searching a space by a score of its architectures."""

from supernet.search.additive import AdditiveScore, FittedScore, fit_scores
from supernet.search.evolution import EvolutionSearcher, evolve
from supernet.search.exhaustive import ExhaustiveSearcher
from supernet.search.front import Entry, Front
from supernet.search.integer_program import maximize
from supernet.search.nsga import NsgaSearcher
from supernet.search.process_workers import ProcessWorkers
from supernet.search.random_searcher import RandomSearcher
from supernet.search.ray_workers import RayWorkers
from supernet.search.regularized_evolution import RegularizedEvolutionSearcher
from supernet.search.searcher import Scored, Searcher, search
from supernet.search.searching import search_front
from supernet.search.supernet_evaluator import SupernetEvaluator
from supernet.search.tpe import TpeSearcher

__all__ = [
    "AdditiveScore",
    "Entry",
    "EvolutionSearcher",
    "ExhaustiveSearcher",
    "FittedScore",
    "Front",
    "NsgaSearcher",
    "ProcessWorkers",
    "RandomSearcher",
    "RayWorkers",
    "RegularizedEvolutionSearcher",
    "Scored",
    "Searcher",
    "SupernetEvaluator",
    "TpeSearcher",
    "evolve",
    "fit_scores",
    "maximize",
    "search",
    "search_front",
]
