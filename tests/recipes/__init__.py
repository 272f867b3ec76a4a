"""Proof of the recipes: round trips, refusals, goldens, a toy task each."""
