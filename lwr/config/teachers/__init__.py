"""The sections of teachers, and the checks of what grids use them for."""
