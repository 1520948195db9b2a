"""Faults of every kind on real processes, with a checker of its own for what must hold all the same."""
