"""The runtime that sits beside an Electron app: pixels in, embeddings and a heatmap out."""

__version__ = "0.1.0"
