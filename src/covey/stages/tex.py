"""Numbers and conditions as LaTeX, for the formulas that components tell of themselves."""

from __future__ import annotations


def number(value: float) -> str:
    """A number in LaTeX: 0.2 as it is, 1e-06 as a power of ten."""
    mantissa, _, exponent = f"{value:g}".partition("e")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\cdot {power}"


def factor(value: float) -> str:
    """A number in LaTeX before what it multiplies: nothing for 1."""
    return "" if value == 1 else rf"{number(value)}\,"


def name(text: str) -> str:
    """A name of the user's as LaTeX text."""
    return "".join(f"\\{sign}" if sign in "_%&#$" else sign for sign in text)
