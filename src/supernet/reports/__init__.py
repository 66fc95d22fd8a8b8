"""Pictures of what a search found."""

from supernet.reports.plots import plot_architecture, plot_probabilities

__all__ = ["plot_architecture", "plot_probabilities"]
