"""Proof of the stages: oracles, goldens, properties, finite differences."""
