"""Schedules of cascades: how they are replayed, searched and chosen."""
