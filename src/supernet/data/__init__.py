"""From whatever data a user has to batches."""
