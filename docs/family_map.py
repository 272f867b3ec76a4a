"""Draws the map of the family, docs/img/family.svg: what each arrow takes away (above its line) and what it adds (below).

`make docs` writes it.
"""

from __future__ import annotations

COLUMNS = {1: (10, 112), 2: (300, 146), 3: (622, 150), 4: (944, 150)}
"""Column -> left edge and width of its boxes."""
STEP, TOP, HEIGHT = 58, 34, 38

NODES = {
    "reinforce": (1, 1.0, "advantage"),
    "ppo": (1, 7.0, "advantage"),
    "rloo": (2, 1.0, "advantage"),
    "reinforce_plus_plus": (2, 0.0, "advantage"),
    "grpo": (2, 6.0, "hub"),
    "reinforce_plus_plus_baseline": (3, 0.0, "advantage"),
    "lite_ppo": (3, 2.0, "advantage"),
    "gfpo": (3, 3.0, "advantage"),
    "gdpo": (3, 4.0, "advantage"),
    "maxrl": (3, 1.0, "advantage"),
    "pass_k_training": (3, 5.0, "advantage"),
    "dr_grpo": (3, 6.0, "weighting"),
    "dapo": (3, 7.0, "weighting"),
    "gspo": (3, 8.0, "ratio"),
    "gmpo": (3, 9.0, "ratio"),
    "sapo": (3, 10.0, "ratio"),
    "gvpo": (3, 11.0, "group"),
    "disco": (3, 12.0, "group"),
    "gfpo_efficiency gfpo_adaptive": (4, 3.0, "advantage"),
    "dppo": (4, 5.4, "ratio"),
    "clip_cov kl_cov": (4, 6.4, "ratio"),
    "cispo": (4, 7.4, "ratio"),
    "gspo_token": (4, 8.4, "ratio"),
    "disco_ratio": (4, 12.0, "group"),
}
"""Recipes (two that differ alike share a box) -> column, row, what they change."""

EDGES = (
    ("reinforce", "rloo", "mean of the batch", "mean of the others"),
    ("reinforce", "reinforce_plus_plus", "one step only", "clip, whitened batch"),
    ("reinforce", "grpo", "mean of the batch", "mean, std of the group"),
    ("ppo", "grpo", "critic", "the group as baseline"),
    ("reinforce_plus_plus", "reinforce_plus_plus_baseline", "KL in the reward", "mean of the group first"),
    ("grpo", "lite_ppo", "std of the group, KL", "std of the batch"),
    ("grpo", "gfpo", "long answers", "only k of G count"),
    ("grpo", "gdpo", "one sum of rewards", "each normalised alone"),
    ("rloo", "maxrl", "mean of the others", "division by the mean"),
    ("grpo", "pass_k_training", "each answer alone", "a set wins by one"),
    ("grpo", "dr_grpo", "std, 1/length, KL", "constant divisor"),
    ("grpo", "dapo", "equal groups, KL", "1/tokens, wider clip"),
    ("grpo", "gspo", "token ratio, KL", "ratio of the response"),
    ("grpo", "gmpo", "mean of ratios, KL", "geometric mean"),
    ("grpo", "sapo", "hard clip, KL", "smooth gate"),
    ("grpo", "gvpo", "ratio, clip, std", "regression on reward"),
    ("grpo", "disco", "weight by difficulty", "good ranked over bad"),
    ("gfpo", "gfpo_efficiency gfpo_adaptive", "length alone", "reward; difficulty"),
    ("dr_grpo", "dppo", "clip by ratio", "mask by divergence"),
    ("dapo", "clip_cov kl_cov", "same clip for all", "by covariance"),
    ("dapo", "cispo", "clip, dropped tokens", "truncated weight"),
    ("gspo", "gspo_token", "one A per response", "A per token"),
    ("disco", "disco_ratio", "mean log-prob.", "mean ratio as score"),
)
"""From, to, what is taken away, what is added."""

MEANING = {
    "advantage": "what a response is compared with",
    "weighting": "what a token counts",
    "ratio": "whose probability moved, and what becomes of its gradient",
    "group": "a group at once",
}
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9da7b1"),
    "line": ("#8c959f", "#6e7681"),
    "paper": ("#ffffff", "#161b22"),
    "minus": ("#b3261e", "#ff8a80"),
    "plus": ("#1a7f37", "#5fd38d"),
    "advantage": ("#dbeafe", "#1d3557"),
    "weighting": ("#d5f0e6", "#17463a"),
    "ratio": ("#eadcfb", "#40275e"),
    "group": ("#fde6cf", "#5a3716"),
    "hub": ("#fff3b8", "#5b4d0d"),
}
"""What is filled with a colour -> it by day and by night; plain rules, which programs without CSS variables understand too."""
FONTS = """
text { font-family: Helvetica, Arial, sans-serif }
.name { font-size: 13px; font-weight: 600; text-anchor: middle } .small { font-size: 11px }
.minus, .plus { font-size: 11.5px } .soft { font-size: 12px } .edge { fill: none; stroke-width: 1.3 }
"""


def draw() -> str:
    """The map as SVG; it has its own paper, and follows the system's choice of light and dark."""
    width, height = 1104, int(TOP + 12 * STEP + 76)
    lines = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img'>"]
    lines += ["<title>The family of methods: what each one takes away and adds</title>", f"<style>{style()}</style>"]
    lines += [
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path class='line' d='M0,0L8,4L0,8z'/></marker></defs>",
        f"<rect class='paper' width='{width}' height='{height}' rx='8'/>",
    ]
    lines += [line for edge in EDGES for line in arrow(*edge)]
    lines += [line for name, (column, row, kind) in NODES.items() for line in box(name, column, row, kind)]
    return "\n".join([*lines, *legend(height), "</svg>", ""])


def style() -> str:
    """Fonts, and the colours by day with those of the night as an exception."""
    day, night = (
        "".join(f".{name} {{ fill: {pair[at]} }}\n" for name, pair in COLOURS.items())
        + f".edge, .box {{ stroke: {COLOURS['line'][at]} }}\n"
        for at in (0, 1)
    )
    return f"{FONTS}{day}@media (prefers-color-scheme: dark) {{\n{night}}}\n"


def place(name: str) -> tuple[float, float, float]:
    """Left and right edge of a box, and its middle line."""
    column, row, _ = NODES[name]
    left, width = COLUMNS[column]
    return left, left + width, TOP + row * STEP


def box(name: str, column: int, row: float, kind: str) -> list[str]:
    """A recipe, or two."""
    left, width = COLUMNS[column]
    middle = TOP + row * STEP
    words = name.split() if " " in name else name.replace("_plus_baseline", "_plus _baseline").split()
    size = "name small" if len(words) > 1 or len(name) > 18 else "name"
    x, rows = left + width / 2, [middle + 4] if len(words) == 1 else [middle - 3, middle + 11]
    shape = (
        f"<rect class='box {kind}' x='{left}' y='{middle - HEIGHT / 2:g}' width='{width}' height='{HEIGHT}' rx='7'/>"
    )
    return [
        shape,
        *(f"<text class='ink {size}' x='{x:g}' y='{y:g}'>{word}</text>" for word, y in zip(words, rows, strict=True)),
    ]


def arrow(start: str, end: str, minus: str, plus: str) -> list[str]:
    """A line from a box over the trunk at its right to another box, with what goes above and what comes below."""
    _, left, y = place(start)
    right, _, to = place(end)
    shift = {("reinforce", "grpo"): -9, ("ppo", "grpo"): 9}.get((start, end), 0)
    trunk, to = left + 14, to + shift
    far = shift and abs(to - y) > STEP
    path = f"M{left:g},{y:g}H{trunk:g}V{to:g}H{right - 2:g}"
    above, below = (to - 6, to + 14) if not far else (to - 20, to - 6) if shift < 0 else (to + 14, to + 28)
    texts = [(minus, "minus", above, "\u2212"), (plus, "plus", below, "+")]
    return [
        f"<path class='edge' d='{path}' marker-end='url(#tip)'/>",
        *(
            f"<text class='{kind}' x='{trunk + 6:g}' y='{at:g}'>{sign} {text}</text>"
            for text, kind, at, sign in texts
            if text
        ),
    ]


def legend(height: int) -> list[str]:
    """What the colours mean."""
    x, out = 12, []
    for kind, text in MEANING.items():
        out += [
            f"<rect class='box {kind}' x='{x}' y='{height - 26}' width='16' height='14' rx='3'/>",
            f"<text class='soft' x='{x + 22}' y='{height - 14}'>{text}</text>",
        ]
        x += 46 + int(len(text) * 6.1)
    return out
