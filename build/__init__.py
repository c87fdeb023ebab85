"""Packaging time: turns a Gemma 3 checkpoint into the model directory that the sidecar reads."""
