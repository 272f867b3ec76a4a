"""The learning curve: what is read, the chart in the terminal and the picture, which has to be valid and hold the data."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.observe.curve import Curve, Evaluated, draw, label, read_curve, ticks, trace
from covey.observe.svg import ACCURACY, REWARD, svg, write_svg

SVG = "{http://www.w3.org/2000/svg}"


def rows(steps=60, scale=1.0):
    found = [{"step": 0, "eval/accuracy": 0.25, "eval/low": 0.2, "eval/high": 0.31}]
    found += [
        {"step": n, "reward/mean": scale * (0.2 + 0.6 * n / steps), "group/mixed": 0.5} for n in range(1, steps + 1)
    ]
    return [*found, {"step": steps, "eval/accuracy": 0.8125, "eval/low": 0.77, "eval/high": 0.85}]


def test_the_curve_is_read_from_the_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(4)) + '{"step":5,"reward/mean":null}\n{"st')
    curve = read_curve(path)
    assert curve.reward == ((1.0, 0.35), (2.0, 0.5), (3.0, pytest.approx(0.65)), (4.0, 0.8))
    assert curve.accuracy == (Evaluated(0.0, 0.25, 0.2, 0.31), Evaluated(4.0, 0.8125, 0.77, 0.85))


def test_smoothing_keeps_level_and_length():
    curve = Curve(tuple((float(i), float(i % 2)) for i in range(300)))
    assert [step for step, _ in curve.smooth] == [step for step, _ in curve.reward]
    assert all(abs(value - 0.5) < 0.1 for _, value in curve.smooth)
    few = Curve(((0.0, 0.1), (1.0, 0.9)))
    assert few.smooth == few.reward


finite = st.floats(-1e6, 1e6)


@given(finite, finite, st.integers(3, 12))
def test_ticks_are_few_and_round_and_cover(one, two, most):
    low, high = sorted((one, two))
    found = ticks(low, high, most=most)
    assert 2 <= len(found) <= most
    slack = 1e-6 * (found[-1] - found[0])
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    unit = found[1] - found[0]
    if unit > 1e-9:
        digits = unit / 10 ** math.floor(math.log10(unit * 1.0000001))
        assert min(abs(digits - d) for d in (1, 2, 5, 10)) < 1e-3


def test_the_chart_has_axes_marks_and_a_rising_line():
    text = draw(trace(rows()), width=60, height=10)
    lines = text.split("\n")
    assert len(lines) == 13
    assert all(len(line) <= 60 for line in lines[:-1])
    assert lines[0].strip().startswith("1")
    assert lines[9].strip().startswith("0")
    assert sum(line.count("◆") for line in lines[:10]) == 2
    tops = [min(y for y in range(10) if len(lines[y]) > x and lines[y][x] not in " ┤│") for x in (10, 30, 55)]
    assert tops == sorted(tops, reverse=True)
    assert tops[0] > tops[-1]
    assert "step" in lines[-2]
    assert lines[-2].split()[0] == "0"
    assert lines[-2].split()[-1] == "60"


@pytest.mark.parametrize(
    "curve",
    [
        Curve(),
        Curve(((3.0, 0.5),)),
        Curve(accuracy=(Evaluated(0.0, 0.5, math.nan, math.nan),)),
        Curve(((0.0, -7.0), (1.0, 250.0))),
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_small_and_odd_curves_are_drawn(curve, ascii_only):
    text = draw(curve, width=40, height=6, ascii_only=ascii_only)
    assert text.isascii() or not ascii_only
    assert ("no steps" in text) == curve.empty
    ElementTree.fromstring(svg(curve))


def elements(curve, name):
    return list(ElementTree.fromstring(svg(curve)).iter(f"{SVG}{name}"))


def test_the_picture_is_xml_and_holds_every_point():
    curve = trace(rows(), title="dr_grpo on compose")
    told = [item.text for item in elements(curve, "title")]
    assert "dr_grpo on compose" in told
    assert "step 0: accuracy 0.250, 95 % interval 0.200 to 0.310" in told
    assert "step 60: accuracy 0.812, 95 % interval 0.770 to 0.850" in told
    lines = {line.get("stroke-width"): line.get("points").split() for line in elements(curve, "polyline")}
    assert len(lines[None] if lines[None][0].count(",") else []) in (2, 60)
    raw = next(line for line in elements(curve, "polyline") if line.get("stroke-opacity"))
    assert len(raw.get("points").split()) == 60
    x, y = map(float, raw.get("points").split()[-1].split(","))
    assert (x, y) == (pytest.approx(64 + 760 - 92), pytest.approx(66 + 320 * 0.2, abs=0.1))
    texts = [item.text for item in elements(curve, "text")]
    assert {"step", "reward / accuracy", "mean reward of a step (training)", "0", "0.2", "1", "60"} <= set(texts)


def test_rewards_beyond_one_have_a_panel_of_their_own():
    texts = [item.text for item in elements(trace(rows(scale=40.0)), "text")]
    assert "reward" in texts
    assert "accuracy" in texts
    assert "reward / accuracy" not in texts


def test_the_two_curves_differ_in_colour_lightness_and_shape():
    def light(colour):
        return sum(int(colour[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.59), (5, 0.11)))

    assert abs(light(REWARD) - light(ACCURACY)) > 20
    assert len(elements(trace(rows()), "path")) >= 4


def test_titles_cannot_break_out_of_the_picture(tmp_path):
    curve = trace(rows(3), title="</title><script>alert(1)</script>\x1b[31m&\x00'\"")
    path = write_svg(tmp_path / "curve.svg", curve)
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert not list(root.iter(f"{SVG}script"))
    assert root.find(f"{SVG}title").text == "</title><script>alert(1)</script>&'\""
    assert "http" not in path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


def test_labels_are_short():
    assert [label(value) for value in (0.0, 0.30000000000000004, 150.0, 1e-7, -0.5)] == [
        "0",
        "0.3",
        "150",
        "1e-07",
        "-0.5",
    ]
