"""Files of a run: what they hold, exactly, and digests of it."""
