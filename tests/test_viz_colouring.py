"""Scales of numbers, legends of names, and the letters in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.viz.colouring import MISSING, OTHER, Numbers, grouped, scale_colours, scaled
from chatspace.viz.lettering import cut_middle, fitting
from chatspace.viz.picture import Words, draw_map

WORDS = Words(title="t", subtitle="s", reading="r")
LONG = "Introductory material about the language and its grammar (part {} of three)"


def scale_of(*values: float) -> list[float]:
    return scaled(Numbers(name="n", values=np.array(values, np.float64))).places.tolist()


def lightness(colour: str) -> float:
    """Returns L of OKLab. Source: https://bottosson.github.io/posts/oklab/"""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels > 0.04045, ((channels + 0.055) / 1.055) ** 2.4, channels / 12.92)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    return float(np.cbrt(to_lms @ linear) @ [0.2104542553, 0.7936177850, -0.0040720468])


def test_scale_colours_grow_lighter_in_even_steps_on_both_grounds() -> None:
    for colours in scale_colours():
        found = np.array([lightness(colour) for colour in colours])
        assert (np.diff(found) > 0).all()
        steps = np.diff(found[::9])  # far enough apart that rounding to 256 values is no matter
        assert steps.max() < 1.3 * steps.min()


def test_scaled_numbers_are_even_between_the_least_and_the_largest() -> None:
    assert scale_of(-2, 0, 2, 6) == [0, 0.25, 0.5, 1]


def test_scaled_numbers_over_three_powers_of_ten_are_even_in_their_logarithms() -> None:
    scale = scaled(Numbers(name="n", values=10.0 ** np.arange(0, 9)))
    assert np.allclose(scale.places, np.arange(9) / 8)
    assert [text for _, text in scale.ticks] == ["1", "100", "10,000", "1,000,000", "1e8"]


def test_scaled_numbers_with_a_few_far_ones_end_before_them_and_say_so() -> None:
    values = np.append(np.arange(1000), 1e6)
    scale = scaled(Numbers(name="n", values=values))
    assert scale.note == "below 10 and above 990: colour of the end"
    assert scale.places[500] == pytest.approx(0.5, abs=0.01)
    assert (scale.places[0], scale.places[-1]) == (0, 1)


@pytest.mark.parametrize("values", [[-3.5, 1.25], [1e-30, 2e-30], [-1e300, 1e300], [0, 5e-324]])
def test_scaled_numbers_that_are_all_shown_have_no_note(values: list[float]) -> None:
    scale = scaled(Numbers(name="n", values=np.array(values)))
    assert scale.note == ""
    assert scale.places.tolist() == [0, 1]
    assert len(scale.ticks) >= 2


def test_scaled_years_are_whole_and_without_separators() -> None:
    scale = scaled(Numbers(name="year", values=np.arange(1990.0, 2020)))
    assert [text for _, text in scale.ticks] == ["1990", "2000", "2010"]


@given(
    st.lists(
        st.one_of(st.floats(-1e12, 1e12, allow_subnormal=False), st.just(float("nan"))), min_size=2
    ).filter(lambda values: len({v for v in values if v == v}) > 1)
)
def test_scaled_keeps_the_order_and_stays_on_the_bar(values: list[float]) -> None:
    found = np.array(values)
    scale = scaled(Numbers(name="n", values=found))
    there = np.isfinite(found)
    assert np.array_equal(np.isnan(scale.places), ~there)
    places = scale.places[there][np.argsort(found[there], kind="stable")]
    assert (np.diff(places) >= 0).all() and places[0] == 0 and places[-1] == 1
    assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in scale.ticks)


def test_grouped_whole_numbers_stand_as_numbers_do() -> None:
    names = ["10"] * 5 + ["9"] + ["-1"] * 2 + [MISSING] * 9
    groups = grouped(names, np.random.default_rng(0).normal(size=(len(names), 2)))
    assert [group.name for group in groups] == ["-1", "9", "10", MISSING]
    assert [len(group.members) for group in groups] == [2, 1, 5, 9]


@pytest.mark.parametrize(
    ("text", "n_chars", "shown"),
    [
        ("whole", 5, "whole"),
        ("part one of three", 9, "part…hree"),
        ("part one of three", 8, "part…ree"),
        ("ab", 1, "…"),
        ("", 1, ""),
    ],
)
def test_cut_middle_leaves_both_ends(text: str, n_chars: int, shown: str) -> None:
    assert cut_middle(text, n_chars) == shown


@given(st.text("abc…ß語"), st.integers(1, 30))
def test_fitting_is_as_long_as_it_may_be(text: str, most: int) -> None:
    shown = fitting(text, lambda part: len(part) <= most)
    assert len(shown) <= most
    assert shown == text or (shown == cut_middle(text, most) and "…" in shown)


def drawn_texts(colouring: object) -> list[tuple[str, float, float]]:
    """Returns the texts right of the points, and where they begin and end, of the width."""
    xy = np.random.default_rng(0).normal(size=(6, 2))
    figure = draw_map(xy, colouring, WORDS)  # type: ignore[arg-type]
    figure.canvas.draw()
    boxes = [(text, text.get_window_extent()) for text in figure.texts[:-3]]
    width = figure.bbox.width
    return [(text.get_text(), box.x0 / width, box.x1 / width) for text, box in boxes]


def test_draw_map_shows_names_whole_up_to_a_width_and_then_both_their_ends() -> None:
    names = [LONG.format("one"), LONG.format("two"), "A name of twenty-nine letters"] * 2
    xy = np.random.default_rng(0).normal(size=(6, 2))
    texts = drawn_texts(grouped(names, xy))
    shown = [text for text, _, _ in texts]
    assert "A name of twenty-nine letters" in shown
    assert next(text for text in shown if text.endswith("one of three)")).startswith("Introd")
    assert next(text for text in shown if text.endswith("two of three)")).startswith("Introd")
    labels = [box for box in texts if not box[0].isdecimal()]
    counts = [box for box in texts if box[0].isdecimal()]
    assert max(end for _, _, end in labels) < min(begin for _, begin, _ in counts)
    assert max(end for _, _, end in counts) <= 0.98


def test_draw_map_of_numbers_says_what_they_are_and_how_many_have_none() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, np.nan, np.nan])
    shown = [text for text, _, _ in drawn_texts(scaled(Numbers(name="score", values=values)))]
    assert shown == ["score", MISSING, "2"]
    assert OTHER not in shown
