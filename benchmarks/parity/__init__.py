"""Parity: the peers' own functions and covey's presets on the same tensors. `python -m benchmarks.parity` writes the page."""
