"""The HTTP server of one reranker, and its page."""
