"""Measures per query, cascades, costs, comparisons."""
