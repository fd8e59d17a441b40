"""Pseudo-labels: what is kept of labels that a model made, and how good they may be."""
