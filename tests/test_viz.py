"""Figures, tables and frames: what is drawn, bad input, the budget, and life without `Stack`."""

import json
import math
import re
from pathlib import Path

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ponderlearn import cards, viz
from ponderlearn.metrics import paired_interval

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv("PONDERLEARN_SCALE", "full")
    with matplotlib.rc_context():
        viz.look()
        yield
    plt.close("all")


def axis():
    return plt.subplots()[1]


# Intervals


SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@settings(max_examples=10, deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.5, 0.95]))
def test_intervals_are_those_of_metrics(one, two, level):
    found = viz.dots(axis(), [one, two], labels=["a", "b"], level=level)
    plt.close("all")
    assert found == [paired_interval(scores, level=level) for scores in (one, two)]


def test_band_returns_what_it_draws():
    ax, ys = axis(), np.random.default_rng(0).normal(size=(5, 4))
    found = viz.band(ax, torch.arange(4), torch.tensor(ys), label="arm")
    assert found == [paired_interval(column) for column in ys.T]
    mean, low, high = np.array([interval[:3] for interval in found]).T
    assert np.allclose(ax.lines[0].get_ydata(), mean) and np.allclose(mean, ys.mean(0))
    path = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(path.max(), high.max()) and np.isclose(path.min(), low.min())
    assert len(ax.lines) == 1 + 5 and ax.get_legend_handles_labels()[1] == ["arm"]


def test_band_of_one_seed_has_no_band():
    ax = axis()
    found = viz.band(ax, [0, 1], [[1.0, 2.0]], label="one")
    assert [str(interval) for interval in found] == ["1", "2"] and not ax.collections


def test_dots_draws_every_seed_once():
    ax, groups = axis(), [[1.0, 2.0, 3.0], [2.0, 2.5, 4.0]]
    found = viz.dots(ax, groups, labels=["a", "b"], paired=True)
    drawn = [line for line in ax.lines if line.get_marker() == "o"]
    assert [sorted(line.get_ydata()) for line in drawn] == groups
    assert found[0][:3] == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]


def test_dots_horizontal_puts_scores_on_x():
    ax = axis()
    viz.dots(ax, [[1.0, 2.0]], labels=["a"], horizontal=True)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a"]
    assert list(next(line for line in ax.lines if line.get_marker() == "o").get_xdata()) == [
        1.0,
        2.0,
    ]


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: viz.band(axis(), [0, 1], [1.0, 2.0], label="x"),
            r"^ys must have shape \(n_seeds, 2\), got shape \(2,\)$",
        ),
        (lambda: viz.band(axis(), [0, 1], [[1.0, 2.0, 3.0]], label="x"), r"^ys must have shape"),
        (
            lambda: viz.band(axis(), [0], [[math.nan]], label="x"),
            r"^ys must be finite, got NaN or infinity$",
        ),
        (
            lambda: viz.band(axis(), [0], [[1.0]], label="x", level=1),
            r"^level must lie in \(0, 1\), got 1.0$",
        ),
        (lambda: viz.dots(axis(), [], labels=[]), r"^groups must hold at least one group"),
        (
            lambda: viz.dots(axis(), [[]], labels=["a"]),
            r"^groups\[0\] must be a list of scores, got shape \(0,\)$",
        ),
        (
            lambda: viz.dots(axis(), [[1.0]], labels=["a", "b"]),
            r"^labels must have 1 names, got 2$",
        ),
        (
            lambda: viz.dots(axis(), [[1.0], [1.0, 2.0]], labels=["a", "b"], paired=True),
            r"^groups must have equally many scores when paired, got \[1, 2\]$",
        ),
        (lambda: viz.dots(axis(), [[1.0, math.inf]], labels=["a"]), r"^groups\[0\] must be finite"),
        (lambda: viz.image_grid([]), r"^images must hold at least one image"),
        (
            lambda: viz.image_grid(torch.zeros(2, 4, 5, 5)),
            r"^images must have shape .* got \(n, 4, 5, 5\)$",
        ),
        (
            lambda: viz.image_grid([torch.zeros(4, 4), torch.zeros(5, 5)]),
            r"^images must all have one shape",
        ),
        (lambda: viz.image_grid(torch.zeros(2, 4, 4), ["one"]), r"^titles must have 2 names"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Images


@pytest.mark.parametrize("shape", [(10, 6, 5), (10, 1, 6, 5), (10, 3, 6, 5), (10, 6, 5, 3)])
def test_image_grid_draws_all_on_one_scale(shape):
    images = torch.rand(shape)
    fig = viz.image_grid(images, [str(i) for i in range(10)])
    shown = [ax.images[0] for ax in fig.axes if ax.images]
    assert len(shown) == 10 and len({image.get_clim() for image in shown}) == 1
    assert all(image.get_array().shape[:2] == (6, 5) for image in shown)


# Tables


def test_the_table_is_the_one_of_the_cards():
    assert viz.table is cards.table and viz.Table is cards.Table
    assert {"table", "Table"} <= set(viz.__all__)


# Frames


def draw(*point):
    fig = plt.figure(figsize=(1, 1))
    fig.add_artist(plt.Line2D([0, 0.1 + point[0] / 100], [0, 0.1 + point[-1] / 100]))
    return fig


def alt(*point):
    return f"at {point}"


def make(x=range(15), y=None, **kwargs):
    kwargs = {
        "alt": alt,
        "x_label": "first",
        "y_label": None if y is None else "second",
        "dpi": 30,
    } | kwargs
    return viz.frames(kwargs.pop("draw", draw), x, y, **kwargs)


def alts(stack):
    return [re.search('alt="([^"]*)"', page.value)[1] for page in stack.children]


needs_stack = pytest.mark.skipif(
    not hasattr(ipywidgets, "Stack"), reason="ipywidgets 7 has no Stack"
)


@needs_stack
def test_one_slider():
    found = make()
    slider, stack = found.children
    assert slider.description == "first" and slider.index == stack.selected_index == 7
    assert alts(stack) == [f"at ({i},)" for i in range(15)]
    assert len({page.value for page in stack.children}) == 15
    assert "ponder-frames" in found._dom_classes


@needs_stack
def test_two_sliders():
    first, second, stack = make(range(9), range(7), start=(1, 5)).children
    assert (first.index, second.index, stack.selected_index) == (1, 5, 1)
    assert [inner.selected_index for inner in stack.children] == [5] * 9
    assert alts(stack.children[3]) == [f"at (3, {j})" for j in range(7)]


@needs_stack
def test_links_tie_the_sliders_to_the_stacks(monkeypatch):
    made, real = [], ipywidgets.jslink
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: made.append(ends) or real(*ends))
    first, second, stack = make(range(9), range(7)).children
    assert ((first, "index"), (stack, "selected_index")) in made
    assert all(((second, "index"), (inner, "selected_index")) in made for inner in stack.children)
    assert len(made) == 10


def test_the_slider_shows_the_value_of_the_stop():
    values = np.linspace(0.1, 1.5, 15)
    assert make(values).children[0].label == "0.8"
    slider = make({f"{v:.0%}": v for v in values}).children[0]
    assert slider.label == "80%"
    assert make([(f"p{i}", i) for i in range(15)]).children[0].label == "p7"


@needs_stack
def test_alternative_text_is_escaped():
    found = make(alt=lambda x: f'{x} < "quote"')
    assert 'alt="0 &lt; &quot;quote&quot;"' in found.children[1].children[0].value


@needs_stack
def test_quick_draws_the_ends_and_the_middle(monkeypatch):
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    calls = []
    found = make(draw=lambda x: calls.append(x) or draw(x))
    assert calls == [0, 7, 14] and found.children[0].index == 1
    assert len(make(range(9), range(7)).children[2].children) == 3
    with pytest.raises(ValueError, match="at least 12 stops"):
        make(range(11))


def test_figures_are_closed():
    plt.close("all")
    make()
    assert plt.get_fignums() == []


def big(x):
    fig = plt.figure(figsize=(5, 5))
    fig.figimage(np.random.default_rng(x).random((500, 500)))
    return fig


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"x": range(11)}, ValueError, "^x must have at least 12 stops, got 11$"),
        (
            {"x": range(6), "y": range(6)},
            ValueError,
            "^x and y must have at least 7 and 5 stops, got 6 and 6$",
        ),
        ({"x": range(81)}, ValueError, "^x must make at most 80 pictures, got 81$"),
        (
            {"x": range(10), "y": range(9)},
            ValueError,
            "^x and y must make at most 80 pictures, got 10 x 9$",
        ),
        ({"x": [1] * 15}, ValueError, "^x must have stops with different labels"),
        ({"y_label": "b"}, ValueError, "^y_label must be None without y"),
        (
            {"x": range(9), "y": range(7), "y_label": ""},
            ValueError,
            "^y_label must be a nonempty string when y is given",
        ),
        ({"x_label": ""}, ValueError, "^x_label must be a nonempty string"),
        ({"start": 15}, ValueError, r"^start must lie in 0\.\.14, got 15$"),
        ({"start": (1, 2)}, ValueError, "^start must be 1 indices"),
        (
            {"alt": lambda x: "always the same"},
            ValueError,
            r"^alt must differ between the pictures at \(0,\) and \(1,\)",
        ),
        ({"alt": lambda x: ""}, TypeError, "^alt must return a nonempty string"),
        ({"draw": lambda x: None}, TypeError, "^draw must return a matplotlib Figure, got None$"),
        (
            {"draw": lambda x: plt.figure(figsize=(1 + x, 1))},
            ValueError,
            "^draw must return figures of one size",
        ),
        (
            {"draw": big, "dpi": 100},
            ValueError,
            r"^draw must make pictures of at most 350 kB in all .* kB at \(\d,\)$",
        ),
    ],
)
def test_frames_says_what_is_wrong(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_without_stack_one_picture_and_a_callback(monkeypatch):
    monkeypatch.delattr(ipywidgets, "Stack", raising=False)
    slider, picture = make().children
    assert isinstance(picture, ipywidgets.HTML) and 'alt="at (7,)"' in picture.value
    slider.index = 3
    assert 'alt="at (3,)"' in picture.value
    first, second, picture = make(range(9), range(7)).children
    first.index, second.index = 8, 0
    assert 'alt="at (8, 0)"' in picture.value


@needs_stack
@pytest.mark.parametrize(("x", "y", "start"), [(range(12), None, 3), (range(7), range(5), (6, 0))])
def test_a_still_picture_stands_beside_the_widget(x, y, start):
    found = make(x, y, start=start, x_label="height < 9", alt=lambda *point: f"at {point} & so on")
    bundle = found._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "text/plain" in bundle
    page = found.children[-1].children[start if y is None else start[0]]
    page = page if y is None else page.children[start[1]]
    assert bundle["text/html"].count("<img ") == 1 and page.value in bundle["text/html"]
    stop = f"height &lt; 9: {start}." if y is None else "height &lt; 9: 6, second: 0."
    assert stop in bundle["text/html"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem
)
def test_stored_pictures_of_a_notebook_are_few_and_described(path):
    "Their bytes are limited in test_chapters.py."
    state = json.loads(path.read_text())["metadata"].get("widgets", {}).values()
    pages = [
        model["state"].get("value", "")
        for widgets in state
        for model in widgets["state"].values()
        if model["model_name"] == "HTMLModel"
    ]
    pages = [page for page in pages if "data:image/webp" in page]
    assert len(pages) <= viz._MOST_PICTURES
    assert all(re.search('alt="[^"]+"', page) for page in pages)


# The look


def contrast(one, two):
    "WCAG's contrast of two colors."

    def luminance(color):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in matplotlib.colors.to_rgb(color)
        ]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    high, low = sorted([luminance(one), luminance(two)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_look_sets_the_resolution():
    viz.look(dpi=80)
    assert plt.rcParams["figure.dpi"] == plt.rcParams["savefig.dpi"] == 80
    with pytest.raises(ValueError, match=r"^dpi must lie in \(0, inf\), got 0.0$"):
        viz.look(dpi=0)


def test_colors_have_names():
    assert viz.PALETTE["grey"] == viz.GRAY
    for name, color in viz.PALETTE.items():
        assert name == "grey" or getattr(viz, name.upper()) == color
    cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert cycle[:3] == [viz.BLUE, viz.VERMILION, viz.GREEN]


def test_ink_is_readable_on_the_card():
    card = plt.rcParams["figure.facecolor"]
    assert contrast(plt.rcParams["text.color"], card) > 7
    assert contrast(viz.PALETTE["grey"], card) > 4.4
    for name in ("blue", "vermilion", "green"):
        assert contrast(viz.PALETTE[name], card) > 3


def test_letters_are_large_enough_on_a_phone():
    width = plt.rcParams["figure.figsize"][0] * 72
    for name in ("axes.labelsize", "xtick.labelsize", "legend.fontsize"):
        assert plt.rcParams[name] * 340 / width >= 9


def test_a_scale_of_images_is_in_order():
    with pytest.raises(ValueError, match=r"vmin and vmax must be in order, got list \[2.0, 1.0\]"):
        viz.image_grid(torch.zeros(1, 2, 2), vmin=2, vmax=1)
