"""A network as a file that other programs run, with a card that says what it is."""

from supernet.deploy.card import read_card
from supernet.deploy.export import export_network, load_network

__all__ = ["export_network", "load_network", "read_card"]
