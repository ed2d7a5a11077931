"""Measures of how close two sets of examples are, and their uncertainty; they know nothing of networks."""
