"""Scores of all exits for all candidates, in one pass."""
