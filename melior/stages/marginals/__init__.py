"""Marginals: learned from a target's density, or from rows."""
