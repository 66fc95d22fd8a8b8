"""What an architecture costs, how that depends on a distribution over architectures, and limits of it."""

from supernet.cost.bins import CostBins
from supernet.cost.cost import Cost, PartsCost
from supernet.cost.counts import ArchitectureCost, LayerCost, Macs, Parameters, WeightMemory
from supernet.cost.latency import FileMeasure, Latency, Trust
from supernet.cost.limits import Limits
from supernet.cost.parts import Parts
from supernet.cost.peak_memory import PeakMemory
from supernet.cost.table_cost import TableCost, fit_table
from supernet.cost.terms import Term

__all__ = [
    "ArchitectureCost",
    "Cost",
    "CostBins",
    "FileMeasure",
    "Latency",
    "LayerCost",
    "Limits",
    "Macs",
    "Parameters",
    "Parts",
    "PartsCost",
    "PeakMemory",
    "TableCost",
    "Term",
    "Trust",
    "WeightMemory",
    "fit_table",
]
