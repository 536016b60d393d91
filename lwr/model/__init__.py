"""The reranker: a backbone with a relevance head at every layer from `start_layer` on."""
