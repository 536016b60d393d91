"""Paired tests, bootstrap intervals, and comparisons of times."""
