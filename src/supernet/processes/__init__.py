"""Devices and processes, what these tell each other, and signals that end them."""
