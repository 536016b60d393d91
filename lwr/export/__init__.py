"""Exports for programs that do not know lwr, model cards, and uploads to the Hugging Face hub."""
