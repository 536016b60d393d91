"""Scores of each kind of teacher."""
