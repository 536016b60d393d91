"""lwr: layerwise rerankers. Import the room you need (`from lwr.reranker import LayerwiseReranker`)."""

__version__ = "0.1.0"
