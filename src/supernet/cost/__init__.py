"""What an architecture costs, and how that depends on a distribution over architectures."""
