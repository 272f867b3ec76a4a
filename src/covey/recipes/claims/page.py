"""The page of claims: a table of verdicts, then each claim with the paper's number beside what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from covey.recipes.claims.claim import Claim, Finding, Interval

HEAD = """# Claims

What the papers say, each statement made small enough to be checked on one processor thread with covey's own recipes and stages:
bandits and tables by enumeration, the rest by training policies of a few hundred parameters. `make claims` writes this page,
`covey claims NAME` runs the claims of one recipe, `--quick` takes fewer seeds.

The rule of a verdict is part of its claim and does not change with the numbers. A claim of a direction is **reproduced** if the
95 % interval over seeds (Student's t; of paired differences where two recipes are compared) lies above 0, **not seen** if it
holds 0, **contradicted** if it lies below. A claim of a number is reproduced if the interval lies within the room that is given,
contradicted if it lies wholly outside; one that something is not lost asks for an interval above the number that may be lost.
Numbers without an interval are exact: nothing is drawn. Claims about ratios and surrogates train with four
optimizer steps per batch, because with one all of them have the same gradient.

*Not seen* and *contradicted* speak of this scale only: a table of logits is no language model, and the papers' numbers are of
models a million times larger. Nothing was tuned until it agreed.
"""


def write_page(findings: Sequence[Finding]) -> str:
    """The page as Markdown."""
    count = Counter(found.verdict for found in findings)
    said = ", ".join(f"{count[word]} {word}" for word in ("reproduced", "not seen", "contradicted"))
    seconds = sum(found.seconds for found in findings)
    lines = [
        HEAD,
        f"{len(findings)} claims: {said}. {seconds:.0f} s of one thread in all; runs that claims share are counted once.",
        "",
    ]
    lines += ["| recipe | claim | measured | expected | seeds | s | verdict |", "|---|---|---|---|---|---|---|"]
    lines += [_row(found) for found in findings]
    for found in findings:
        lines += ["", f"## {found.claim.name}", "", *_section(found)]
    return "\n".join([*lines, ""])


def owners(claim: Claim) -> str:
    """The recipes that a claim is about; a component's claim stands for itself."""
    return ", ".join(claim.recipes) or "-"


def _row(found: Finding) -> str:
    claim = found.claim
    names = ", ".join(f"[{name}](recipes/{name}.md)" for name in claim.recipes) or "-"
    seeds = "exact" if claim.seeds == 1 else str(found.seeds)
    mark = found.verdict if found.verdict == "reproduced" else f"**{found.verdict}**"
    cells = (
        names,
        f"[{claim.name}](#{claim.name})",
        _shown(found.value),
        str(claim.rule),
        seeds,
        f"{found.seconds:.1f}",
        mark,
    )
    return f"| {' | '.join(cells)} |"


def _section(found: Finding) -> list[str]:
    claim = found.claim
    lines = [
        f"{claim.says} **{found.verdict.capitalize()}.**",
        "",
        f"- Paper: {claim.paper}",
        f"- Measured: {claim.measures}: {_shown(found.value)} (expected {claim.rule})",
    ]
    lines += [f"- Beside it: {'; '.join(f'{name} {_shown(part)}' for name, part in found.beside.items())}"] * bool(
        found.beside
    )
    return lines + [f"- Note: {claim.note}"] * bool(claim.note)


def _shown(interval: Interval) -> str:
    return str(interval).replace("nan [nan, nan]", "never in some seeds")
