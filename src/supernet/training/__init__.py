"""Running a search or a training: the loop and what surrounds it. It knows no algorithm."""
