"""Collections, their first stage, and training groups."""
