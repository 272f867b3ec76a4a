"""Exact arithmetic expressions that a model wrote: tokens, a recursive descent and fractions; nothing is ever executed.

    expr = term {("+"|"-") term}
    term = atom {("*"|"/") atom}
    atom = digits | "(" expr ")"

Operators are left-associative, digits ASCII, blanks free between tokens. There is no sign, power, decimal or implicit
product.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
DEEPEST = 50
_TOKEN = re.compile(r"[ \t\r\n]*([0-9]+|[-+*/()])")
_TYPOGRAPHIC = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})


class MalformedError(ValueError):
    """The text is no expression of the grammar."""


@dataclass(frozen=True, slots=True)
class Expression:
    """The exact value of an expression and the integers in it, in the order of writing."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate_expression(text: str) -> Expression:
    """The value of an expression of at most 200 characters and bracket depth 50.

    Raises MalformedError if the text is none, and ZeroDivisionError only once all of it has been found well-formed.
    """
    if len(text) > LONGEST:
        raise MalformedError(f"longer than {LONGEST} characters")
    parser = _Parser(list_tokens(text.translate(_TYPOGRAPHIC)))
    value = parser.read_expr(0)
    if parser.here < len(parser.tokens):
        raise MalformedError(f"unexpected {parser.tokens[parser.here]!r}")
    if value is None:
        raise ZeroDivisionError("division by zero")
    return Expression(value, tuple(parser.numbers))


def list_tokens(text: str) -> list[str]:
    """Numbers, operators and brackets in order. Raises MalformedError at any other character."""
    tokens, here, text = [], 0, text.rstrip(" \t\r\n")
    while here < len(text):
        match = _TOKEN.match(text, here)
        if match is None:
            raise MalformedError(f"unexpected {text[here:].lstrip()[:1]!r}")
        tokens.append(match[1])
        here = match.end()
    return tokens


class _Parser:
    """Recursive descent; a value of None stands for a division by zero somewhere inside."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.here, self.numbers = tokens, 0, list[int]()

    def next_is(self, options: str) -> bool:
        return self.here < len(self.tokens) and self.tokens[self.here] in options

    def take(self) -> str:
        if self.here == len(self.tokens):
            raise MalformedError("it ends too early")
        self.here += 1
        return self.tokens[self.here - 1]

    def read_expr(self, depth: int) -> Fraction | None:
        value = self.read_term(depth)
        while self.next_is("+-"):
            value = combine(self.take(), value, self.read_term(depth))
        return value

    def read_term(self, depth: int) -> Fraction | None:
        value = self.read_atom(depth)
        while self.next_is("*/"):
            value = combine(self.take(), value, self.read_atom(depth))
        return value

    def read_atom(self, depth: int) -> Fraction | None:
        token = self.take()
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(token)
        if token != "(" or depth == DEEPEST:
            raise MalformedError(f"unexpected {token!r}" if token != "(" else f"brackets deeper than {DEEPEST}")
        value = self.read_expr(depth + 1)
        if self.take() != ")":
            raise MalformedError("a bracket is not closed")
        return value


def combine(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """`left operator right` exactly; None if either is None or the divisor is 0."""
    if left is None or right is None:
        return None
    if operator == "/":
        return left / right if right else None
    if operator == "*":
        return left * right
    return left + right if operator == "+" else left - right
