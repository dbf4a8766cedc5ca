"""A scan's page: well formed, alone, safe whatever classes are called, legible with a thousand of them."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.html_markup import Markup, element, join
from calibration.html_style import STYLE
from calibration.scan.base import Finding, FoundTrigger, ScanReport
from calibration.scan.reports import to_html, trigger_folders
from calibration.scan.reports.html_chart import WIDTH, bars
from tests.calibration.html_pages import Page, require_alone
from tests.calibration.scan_results import full, hostile, in_pairs, inversion, many, result, trigger

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=y>' javascript:z\x00"


def pictures(page: Page) -> list[Image.Image]:
    sources = [attributes["src"].split(",", 1) for attributes in page.all("img")]
    assert {head for head, _ in sources} <= {"data:image/png;base64"}
    return [Image.open(io.BytesIO(base64.b64decode(content))) for _, content in sources]


CASES = {
    "all": full(),
    "clean": result(inversion(10)),
    "43": many(43, 7),
    "1000": many(1000, 7, 207),
    "hostile": hostile(HOSTILE),
    "empty": result(ScanReport("none", "inconclusive", (), ()), names=None),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_well_formed_and_asks_for_nothing_and_runs_nothing(case: str) -> None:
    text = to_html(CASES[case])
    assert text.startswith('<!DOCTYPE html>\n<html lang="en"><head>')
    page = require_alone(text)
    assert all(attributes.get("href", "#").startswith("#") for _, attributes in page.elements)
    assert not re.search(r"url\(|@import", STYLE)


@pytest.mark.parametrize("case", CASES)
def test_it_can_be_used_without_seeing_it(case: str) -> None:
    page = Page(to_html(CASES[case]))
    assert all(picture["alt"] for picture in page.all("img"))
    named = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= named


def test_a_browser_is_told_to_fetch_nothing() -> None:
    (policy,) = [meta["content"] for meta in Page(to_html(full())).all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_everything_a_reader_needs_is_there() -> None:
    made = full()
    text = Page(to_html(made)).text
    for needed in (
        "Backdoor found",
        "models/resnet18.onnx",
        made.model_sha256,
        made.data_sha256,
        "900 searched on, 100 held out",
        "93.4% on the clean images",
        "3 min 27 s, executor local",
        "system Linux, architecture x86_64, cpu_count 16",
        "torch 2.13.0",
        "neural_cleanse: label 3 needs a trigger of only 9; the median is 96",
        "1.5e-07",
        "1 automobile → 3 cat",
        "450 rows, counted from 0:",
        "7, 10, 13",
        "and 350 more",
        "steps = 300",
        "How to read this",
        "What a clean verdict does not exclude",
        "images were resized from 40 x 40",
    ):
        assert needed in text, needed


@pytest.mark.parametrize(("case", "headline"), [("all", "Backdoor found"), ("clean", "No backdoor found")])
def test_the_verdict_is_the_headline_and_the_title(case: str, headline: str) -> None:
    text = to_html(CASES[case])
    assert f"<h1>{headline}</h1>" in text
    assert f"<title>{headline}: backdoor scan of models/resnet18.onnx</title>" in text


def test_a_clean_verdict_leads_to_what_it_does_not_exclude() -> None:
    assert '<a href="#limits">What this does not exclude.</a>' in to_html(CASES["clean"])
    assert '<a href="#limits">' not in to_html(CASES["all"])


def test_names_from_outside_are_shown_as_they_are() -> None:
    page = Page(to_html(CASES["hostile"]))
    assert HOSTILE.replace("\x00", "\\x00") in page.text
    assert len(page.all("img")) == 6  # two triggers, none of them by the hostile name


def test_markup_is_escaped_once_and_only_where_it_is_text() -> None:
    assert element("p", "a < b", element("b", "&"), title='"') == (
        '<p title="&quot;">a &lt; b<b>&amp;</b></p>'
    )
    assert join("<", Markup("<br>")) == "&lt;<br>"


class TestCharts:
    @pytest.mark.parametrize("classes", [2, 10, 43, 64, 65, 1000])
    def test_none_grows_beyond_its_width_or_a_screen_or_two(self, classes: int) -> None:
        page = Page(to_html(many(classes, 1)))
        boxes = [tuple(map(float, drawing["viewbox"].split())) for drawing in page.all("svg")]
        assert len(boxes) == (1 if classes <= 64 else 2)
        assert all(box[2] == WIDTH and box[3] <= 1500 for box in boxes)
        for tag, left, width in (("rect", "x", "width"), ("line", "x1", "none"), ("text", "x", "none")):
            for drawn in page.all(tag):
                assert 0 <= float(drawn[left]) + float(drawn.get(width, 0)) <= WIDTH

    def test_a_thousand_labels_are_drawn_and_few_are_written(self) -> None:
        text = to_html(CASES["1000"])
        (area,) = re.findall(r'<path d="([^"]+)" class="area"/>', text)
        assert area.count("H") == 1000
        assert len(Page(text).all("rect")) == 24
        assert len(text) < 300_000
        assert "The 50 most suspicious of 1000." in text

    def test_a_bar_is_as_long_as_its_label_s_trigger(self) -> None:
        made = inversion(10, 3)
        measured, measure = bars(made)
        assert measure == "trigger size"
        assert [bar.target for bar in measured] == [finding.target for finding in made.findings]
        lengths = [float(drawn["width"]) for drawn in Page(to_html(result(made))).all("rect")]
        largest = max(bar.value for bar in measured)
        assert lengths == pytest.approx([bar.value / largest * max(lengths) for bar in measured], abs=0.06)

    def test_flagged_bars_are_marked_in_words_too(self) -> None:
        text = to_html(many(43, 7, 9))
        assert text.count("◀ flagged") == 2
        assert text.count('class="bar flagged"') == 2
        assert "flagged: 7 class number 7, 9 class number 9." in text

    def test_the_anomaly_index_stands_beside_each_label(self) -> None:
        made = inversion(10, 3)
        page = Page(to_html(result(made)))
        for finding in made.findings:
            assert f"{finding.facts['anomaly_index']:.2f}" in page.words

    def test_without_sizes_the_scores_are_drawn(self) -> None:
        report = ScanReport("s", "clean", (), (Finding(1, 2.0), Finding(0, -1.0)), measure="oddness")
        measured, measure = bars(report)
        assert ([bar.value for bar in measured], measure) == ([2.0, -1.0], "oddness")
        assert [float(drawn["width"]) > 0 for drawn in Page(to_html(result(report))).all("rect")] == [
            True,
            False,
        ]

    def test_a_label_of_pairs_has_the_smallest_size_of_its_sources(self) -> None:
        measured, _ = bars(in_pairs(10))
        assert (measured[0].target, measured[0].value, measured[0].flagged) == (3, 30.0, True)
        assert len(measured) == 10

    @pytest.mark.parametrize("classes", [3, 100])
    def test_what_is_not_a_number_has_no_bar(self, classes: int) -> None:
        odd = [float("nan"), float("inf")]
        sizes = odd + [1.0 + label for label in range(classes - 2)]
        findings = tuple(Finding(label, 0.0, facts={"size": size}) for label, size in enumerate(sizes))
        text = to_html(result(ScanReport("s", "clean", (), findings), classes=classes, names=None))
        drawings = "".join(re.findall(r"<svg.*?</svg>", text))
        assert "nan" not in drawings
        assert "inf" not in drawings


class TestPairs:
    def test_sources_are_rows_and_targets_columns(self) -> None:
        text = to_html(result(in_pairs(4), classes=4, names=None))
        (table,) = re.findall(r'<table class="heat">.*?</table>', text)
        rows = re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', table)
        assert [source for source, _ in rows] == ["0", "1", "2", "3"]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", rows[1][1])
        assert (cells[1], cells[3]) == ("", "● 8.50")

    def test_many_classes_show_the_twenty_most_suspicious(self) -> None:
        text = to_html(result(in_pairs(43), classes=43, names=None))
        (table,) = re.findall(r'<table class="heat">.*?</table>', text)
        assert (table.count('scope="row"'), table.count('scope="col"')) == (20, 21)
        assert "● 8.50" in table


class TestPictures:
    def test_each_trigger_has_before_after_and_the_difference_amplified(self) -> None:
        report = replace(inversion(10, 3), triggers=(faint(3),))
        page = Page(to_html(result(report)))
        before, after, difference = (np.asarray(picture) for picture in pictures(page))
        assert before.shape == (16, 2 * 17 - 1, 4)
        assert before[:, 16, 3].tolist() == [0] * 16
        changed = np.abs(after[..., :3].astype(int) - before[..., :3])
        assert changed.max() == 8
        assert np.array_equal(difference[..., :3], changed * 31)
        assert "difference ×31" in page.text

    def test_large_pictures_are_shrunk_and_small_triggers_stay(self) -> None:
        report = replace(inversion(10, 3), triggers=(trigger("3", 3, side=300, count=9),))
        shown = pictures(Page(to_html(result(report))))
        assert [picture.size for picture in shown] == [(6 * (100 + 3) - 3, 100)] * 3
        assert np.asarray(shown[2])[..., :3].max() > 100

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_any_number_of_channels_has_a_picture(self, channels: int) -> None:
        grey = np.full((1, 5, 7, channels), 100, np.uint8)
        found = FoundTrigger("3", trigger("3", 3).attack, 1.0, 1.0, "patch", grey, grey)
        shown = pictures(Page(to_html(result(replace(inversion(10, 3), triggers=(found,))))))
        assert [np.unique(np.asarray(picture)[..., :3]).tolist() for picture in shown] == [[100], [100], [0]]

    def test_no_images_no_picture(self) -> None:
        none = np.zeros((0, 5, 7, 3), np.uint8)
        found = FoundTrigger("3", trigger("3", 3).attack, 1.0, 1.0, "patch", none, none)
        page = Page(to_html(result(replace(inversion(10, 3), triggers=(found,)))))
        assert page.all("img") == []
        assert "any class → 3 cat" in page.text

    def test_only_a_few_are_shown_and_the_rest_counted(self) -> None:
        page = Page(to_html(many(43, *range(11))))
        assert len(page.all("img")) == 8 * 3
        assert "3 more are in the folders beside this report." in page.text

    def test_a_trigger_links_to_its_folder_where_that_is_told(self) -> None:
        made = full()
        places: dict[str, Any] = {folder: f"out put/{folder}" for folder in trigger_folders(made)}
        links = [link["href"] for link in Page(to_html(made, places)).all("a")]
        assert links[3:] == ["out%20put/neural_cleanse-3-patch", "out%20put/pairs-1-to-3-waves"]

    def test_a_link_leads_nowhere_but_to_a_file(self) -> None:
        made = full()
        places = dict.fromkeys(trigger_folders(made), "javascript:alert(1)")
        assert {link["href"] for link in Page(to_html(made, places)).all("a")[3:]} == {
            "javascript%3Aalert%281%29"
        }


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
@pytest.mark.parametrize("colour", ["ink", "soft", "bad", "good", "open", "link"])
def test_text_can_be_told_from_its_paper(mode: str, colour: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 to 1."""
    palette = palettes()[mode]
    grounds = ["paper", f"{colour}-wash"] if f"{colour}-wash" in palette else ["paper"]
    if colour == "ink":
        grounds += ["bad-wash", "good-wash", "open-wash"]
    for ground in grounds:
        lighter, darker = sorted((luminance(palette[colour]), luminance(palette[ground])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, ground


def palettes() -> dict[str, dict[str, str]]:
    """Return the style sheet's colours, declared for light paper, dark and print, in that order."""
    roots = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    read = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", root)) for root in roots]
    return dict(zip(("light", "dark", "print"), read, strict=True))


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def faint(label: int) -> FoundTrigger:
    made = trigger(str(label), label, side=16, count=2)
    before = made.before.clip(0, 240)
    after = before.copy()
    after[:, 2:5, 2:5] += 8
    return replace(made, before=before, after=after)
