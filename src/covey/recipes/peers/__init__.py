"""Presets named NAME@PEER: what a peer runs by default under a method's name, where that is not what the paper says.

Each module has `presets`, pairs of a recipe and what there is to know of it. A preset equals the peer on one undivided batch;
what of a peer's number depends on its micro-batches is not imitated.
"""
