"""Checks whether a results tree is what the steps wrote."""
