"""A formula in LaTeX as one line of Unicode, for the terminal.

The parser is the one that makes the site's MathML: what reads well there is understood here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape
from typing import Any, Literal

Role = Literal["operand", "fraction", "function", "sign", "binary", "comma", "open", "close", "bar", "space"]
Piece = tuple[str, Role]

UPPER = dict(
    zip(
        "0123456789+−=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWθβγδφχ*′",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᶿᵝᵞᵟᵠᵡ*′",
        strict=True,
    )
)
LOWER = dict(zip("0123456789+−=()aehijklmnoprstuvxβγρφχ′", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ′", strict=True))
ACCENTS = {"^": "\u0302", "~": "\u0303", "¯": "\u0304", "‾": "\u0304", "―": "\u0304", "˙": "\u0307", "→": "\u20d7"}
GLYPHS = {"ϵ": "ε", "ϕ": "φ", "∗": "*", "⋅": "·", "…": "...", "\u2061": "", "∥": "‖", "-": "−"}
OPEN, CLOSE, BARS, BIG = "([{⌊⌈⟨", ")]}⌋⌉⟩", "|‖", "∑∏∫"
SIGNS = "+−=<>≤≥≠≈∈∉∧∨∪∩←→↦·×∼∝≪≫⇒⇔∖⊂⊆/:∣"
WRAPS = ("math", "mrow", "mstyle", "mpadded", "mtd")
SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
ENDS: tuple[Role, ...] = ("operand", "fraction", "close")
"""Roles after which an operand is complete: a sign that follows is binary."""


def write_unicode(latex: str) -> str:
    """The formula on one line: indices and powers lowered and raised, fractions with a slash and parentheses where needed.

    LaTeX that the parser does not know stays as it is: it may come from anybody's component.
    """
    from latex2mathml.converter import convert_to_element

    try:
        return _write(convert_to_element(latex)).strip()
    except Exception:  # the parser's errors have no class in common
        return latex.strip()


def _write(node: Any) -> str:
    return _lay_out(list(_pieces(node)))


def _pieces(node: Any) -> Iterator[Piece]:
    """The text of a node in pieces, rows and other wrappings opened."""
    tag = _tag(node)
    if tag in WRAPS:
        children = list(node)
        if len(children) > 1 and all(_tag(n) == "mi" and n.get("mathvariant") == "normal" for n in children):
            yield "".join(_letter(n) for n in children), "function"  # \mathrm{word}
            return
        for before, child, after in zip([None, *children], children, [*children[1:], None], strict=False):
            if not any(other is not None and _brackets(other) for other in (before, after)):
                yield from _pieces(child)
    elif tag == "mfrac" and _brackets(node):
        yield "C(" + ", ".join(_write(child) for child in node) + ")", "operand"
    elif tag == "mfrac":
        yield _fraction(*(_write(child) for child in node)), "fraction"
    elif tag in SCRIPTS:
        yield _scripted(tag, *node), _scripted_role(node)
    elif tag == "msqrt":
        inner = _lay_out([piece for child in node for piece in _pieces(child)])
        yield f"√{inner}" if _is_atom(inner) else f"√({inner})", "operand"
    elif tag == "mtable":
        yield "{" + "; ".join(_case(*(_write(cell) for cell in row)) for row in node) + "}", "operand"
    elif tag == "mspace":
        yield ("   " if _width(node) >= 1 else " "), "space"
    elif text := _letter(node):
        yield text, _role(tag, text)


def _brackets(node: Any) -> bool:
    """Whether a node is written with brackets of its own in place of those beside it: a binomial coefficient, or cases."""
    return _tag(node) == "mtable" or (_tag(node) == "mfrac" and node.get("linethickness") is not None)


def _role(tag: str, text: str) -> Role:
    if tag == "mtext":
        return "operand" if text.strip() else "space"
    if text in (",", ";"):
        return "comma"
    for letters, role in ((OPEN, "open"), (CLOSE, "close"), (BARS, "bar"), (SIGNS, "binary"), (BIG, "function")):
        if text in letters:
            return role  # type: ignore[return-value]
    return "function" if tag in ("mi", "mo") and len(text) > 1 and text.isalpha() else "operand"


def _lay_out(pieces: Sequence[Piece]) -> str:
    """Pieces side by side: operands apart, brackets and signs close to what they belong to."""
    out, before, inside = "", "open", 0
    for text, found in pieces:
        role: str = found
        if role == "bar":
            role, inside = ("close", inside - 1) if inside and before in (*ENDS, "apart") else ("open", inside + 1)
        if role == "binary" and before not in (*ENDS, "apart"):
            role = "sign" if text in "+−<>≤≥" else "operand" if text in "·∣" else role
        if role == "space" and not text.strip():
            out += text if len(text) > 1 else ""
            before = "apart" if before in ("operand", "close") else before
            continue
        gap = _gap(before, role, text)
        out += (gap if out and not out.endswith("   ") else "") + text
        before = role
    return out


def _gap(before: str, role: str, text: str) -> str:
    """What stands between two neighbours, by their roles."""
    if role in ("comma", "close") or before in ("open", "sign"):
        return ""
    if role == "open" and text not in "{|‖" and before in ("function", "operand"):
        return ""
    if before in ("comma", "binary") or role == "binary":
        return " "
    if "fraction" in (before, role) and before in (*ENDS, "apart"):
        return " · "
    return " "


def _fraction(top: str, below: str) -> str:
    short = _is_atom(top) and _is_atom(below) and len(top) + len(below) < 9
    top = f"({top})" if _shows(top, "/" + SIGNS.replace("·", "")) else top
    below = below if _is_atom(below) else f"({below})"
    return f"{top}/{below}" if short else f"{top} / {below}"


def _case(value: str, *condition: str) -> str:
    """A row of `cases`."""
    said = " ".join(condition)
    return f"{value} {said if re.match(r'(if|else|otherwise)', said) or not said else f'if {said}'}".strip()


def _scripted(tag: str, base: Any, first: Any, second: Any = None) -> str:
    if tag == "mover" and (mark := _write(first)) in ACCENTS:
        return _write(base) + ACCENTS[mark]
    low, high = (first, second) if tag in ("msubsup", "munderover") else (None, first)
    if tag in ("msub", "munder"):
        low, high = first, None
    text = _write(base)
    if high is not None and not _is_atom(text):
        text = f"({text})"
    up = "" if high is None else _shift(_write(high), UPPER, "^")
    if up.strip("′") == "":
        text, up = text + up, ""
    down = "" if low is None else _shift(_write(low), LOWER, "_")
    return text + (down + up if up.startswith("^") else up + down)


def _shift(text: str, table: dict[str, str], mark: str) -> str:
    """Text raised or lowered: by letters of that height if Unicode has them all, else behind a mark."""
    text = text.replace(" ", "") if not any(letter.isalpha() for letter in re.findall(r"\w{2,} \w", text)) else text
    bare = re.sub(r",(?=\w)", "", text) if re.fullmatch(r"\w′?([+−]\w)?(,\w′?([+−]\w)?)*", text) else text
    if all(letter in table for letter in bare):
        return "".join(table[letter] for letter in bare)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}{{{text}}}"


def _scripted_role(node: Any) -> Role:
    """What a node is under its indices: a function or big operator stays one, a closing bracket too."""
    while _tag(node) in SCRIPTS or (_tag(node) in WRAPS and len(node) == 1):
        node = node[0]
    roles = [role for _, role in _pieces(node)]
    return roles[0] if roles in (["function"], ["close"]) else "operand"


def _letter(node: Any) -> str:
    text = unescape(node.text or "").replace("\xa0", " ")
    if _tag(node) == "mtext":
        return text.strip() or " "
    if node.get("mathvariant") == "bold" and text == "1":
        return "𝟏"
    return GLYPHS.get(text, text)


def _is_atom(text: str) -> bool:
    """One symbol, one number, one bracket, or one call of a function."""
    text = re.sub(r"[_^]\{[^{}]*\}", "", text)
    called = re.match(r"C?[([{⌊⌈⟨|‖√]|[^\W\d_]{2,}\W|[^(]*$", text)
    return called is not None and not _shows(text, " /," + SIGNS)


def _shows(text: str, signs: str) -> bool:
    """Whether one of the signs stands outside of all brackets."""
    depth, bars = 0, 0
    for letter in text:
        depth += (letter in OPEN) - (letter in CLOSE)
        bars += letter in BARS
        if depth == 0 and bars % 2 == 0 and letter in signs:
            return True
    return False


def _width(node: Any) -> float:
    found = re.match(r"[\d.]+", node.get("width", "0"))
    return float(found.group()) if found else 0.0


def _tag(node: Any) -> str:
    return str(node.tag).rpartition("}")[2]
