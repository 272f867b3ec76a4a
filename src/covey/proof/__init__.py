"""Proof of a recipe: properties that every method has to keep, whatever it is made of and whoever wrote its parts."""
