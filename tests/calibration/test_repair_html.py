"""A repair's page: what it says, that it stands alone, and that nothing from outside gets into it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.evaluation.fallen import Fallen  # noqa: E402
from calibration.evaluation.measuring import Known, Measured, Outcome  # noqa: E402
from calibration.evaluation.numbers import Share, UnderTrigger  # noqa: E402
from calibration.repair.base import StageRecord  # noqa: E402
from calibration.repair.html_classes import Change, changes, class_chart  # noqa: E402
from calibration.repair.html_curves import loss_curve  # noqa: E402
from calibration.repair.html_report import to_html, verdict_of  # noqa: E402
from calibration.repair.job import repair_model  # noqa: E402
from calibration.repair.repaired import Repaired  # noqa: E402
from tests.calibration.html_pages import Page, require_alone  # noqa: E402
from tests.calibration.repair_files import CLASSES, options_for  # noqa: E402

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=y>' javascript:z\x00"


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    """A real repair."""
    folder = tmp_path_factory.mktemp("repair")
    options = options_for(folder, held=0.25)
    return repair_model(replace(options, triggers=(folder / "corner",)))[0]


def share(hits: int, of: int = 100) -> Share:
    return Share(hits, of, max(0.0, hits / of - 0.05), min(1.0, hits / of + 0.05))


def measured(acc: int, asr: int, four: int = 0, by_class: tuple[Share, ...] = ()) -> Measured:
    once, copies = (UnderTrigger(share(rate), share(100 - rate)) for rate in (asr, four))
    return Measured(np.zeros((100, CLASSES)), share(acc), by_class, (Outcome(once, {4: copies}, share(77)),))


def rows(page: Page, text: str) -> list[str]:
    """The words of the page that follow some others."""
    words = [word.strip() for word in page.words if word.strip()]
    return words[words.index(text) + 1 :]


def test_the_file_is_written_beside_the_others_and_stands_alone(repaired: Repaired) -> None:
    text = (repaired.options.out / "repair.html").read_text()
    assert text == to_html(repaired) == to_html(repaired)
    page = require_alone(text)
    for needed in (
        Path(repaired.options.model).name,
        repaired.laid.model.source_sha256,
        repaired.sha256,
        "fine_tuning",
        "Before and after",
        "corner: attack success rate",
        "corner: the same with 4 copies",
        "Class by class",
        "fine-tune: mean loss of each epoch or round",
        "guard calibrate --model",
        "120 clean images with labels to learn from, 40 held back",
    ):
        assert needed in page.text, needed
    assert len(page.all("svg")) == 2
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_the_table_holds_shares_and_intervals_before_and_after(repaired: Repaired) -> None:
    page = Page(to_html(replace(repaired, before=measured(90, 99, 98), after=measured(88, 3, 61))))
    assert rows(page, "Accuracy")[:4] == ["90.0%", "85.0 to 95.0%", "88.0%", "83.0 to 93.0%"]
    assert rows(page, "corner: attack success rate")[:4:2] == ["99.0%", "3.0%"]
    assert rows(page, "corner: the same with 4 copies")[:4:2] == ["98.0%", "61.0%"]
    assert rows(page, "corner: true class all the same")[:4:2] == ["1.0%", "97.0%"]
    assert rows(page, "corner: accuracy of the other classes")[:4:2] == ["77.0%", "77.0%"]


UNTRIED = Measured(np.zeros((9, CLASSES)), share(90), (), ())
FELL = (Fallen(1, 12, 1, 14, 0.02),)


@pytest.mark.parametrize(
    ("changed", "headline", "style"),
    [
        ({"after": measured(88, 3, 2)}, "Repaired", "good"),
        ({"after": measured(88, 11, 2)}, "A trigger still works", "bad"),
        ({"after": measured(88, 3, 61)}, "A trigger still works", "bad"),
        ({"after": measured(84, 3, 2)}, "Repaired at a cost", "open"),
        ({"after": measured(88, 3, 2), "fallen": FELL}, "Repaired at a cost", "open"),
        ({"after": UNTRIED}, "Not tried on a trigger", "open"),
        ({"after": replace(UNTRIED, triggers=(Outcome(None),))}, "Not tried on a trigger", "open"),
        ({"after": None, "before": None}, "Not measured", "open"),
    ],
)  # fmt: skip
def test_the_headline_says_what_came_of_it(
    repaired: Repaired, changed: dict[str, Any], headline: str, style: str
) -> None:
    one = replace(repaired, **{"before": measured(90, 99), "fallen": (), **changed})
    assert verdict_of(one)[:2] == (headline, style)
    if one.after is None or len(one.after.triggers) == len(one.laid.known):
        text = to_html(one)
        assert f"<h1>{headline}</h1>" in text
        assert f'class="verdict {style}"' in text
        require_alone(text)


@pytest.fixture
def hostile(repaired: Repaired) -> Repaired:
    laid = repaired.laid
    assert laid.images is not None
    known = tuple(Known(HOSTILE, each.attack) for each in laid.known)
    images = replace(laid.images, class_names=(HOSTILE,) * CLASSES, digest=HOSTILE)
    stages = (StageRecord(HOSTILE, 2.0, 10, (2.0, 1.0)),)
    return replace(
        repaired,
        options=replace(repaired.options, data=Path(HOSTILE)),
        laid=replace(laid, known=known, images=images, notes=(HOSTILE,), mirror=HOSTILE),
        result=replace(repaired.result, stages=stages, notes=(HOSTILE,), facts={HOSTILE: 1.0}),
        fallen=(Fallen(0, 5, 1, 5, 0.01),),
    )


def test_names_from_outside_are_shown_and_do_nothing(hostile: Repaired) -> None:
    text = to_html(hostile)
    page = require_alone(text)
    assert page.all("img") == []
    assert "\x00" not in text
    assert page.text.count("<script>alert(1)</script>") > 8


def test_classes_have_a_bar_each_as_long_as_they_changed() -> None:
    was, now = (
        [share(90), share(50), share(40), share(0, 1)],
        [share(10), share(50), share(80), share(1, 1)],
    )
    page = Page(class_chart(changes(was, now, ["a", "b", "c"], {0})))
    assert [(bar["class"], float(bar["width"])) for bar in page.all("rect")] == [
        ("flagged", 160.0),
        ("risen", 80.0),
        ("risen", 200.0),
    ]  # of 200 for the longest, a change of 100 points
    for words in ("0 a", "-80.0", "+0.0", "+40.0", "3", "90.0% → 10.0%", "Red: fell by more than chance"):
        assert words in page.text
    empty = Change("7", 0, math.nan, math.nan, False)
    assert "– → –" in Page(class_chart([empty])).text
    assert class_chart([]) == ""


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    many = [Change(str(label), 10, 0.5, 0.5 + label / 1000, False) for label in range(200)]
    page = Page(class_chart(many))
    assert len(page.all("rect")) == 40
    assert "The 40 of 200 classes that changed most." in page.text
    assert "199" in page.text.split()
    assert "159" not in page.text.split()


def test_a_loss_curve_goes_from_the_first_epoch_to_the_last() -> None:
    page = Page(loss_curve(StageRecord("erase", 1.0, 10, (4.0, -2.0, 1.0))))
    (path,) = page.all("path")
    assert path["d"] == "M84.0 30.0L512.0 156.0L940.0 93.0"
    assert len(page.all("circle")) == 3
    assert {"4", "1", "-2", "3"} <= set(page.text.split())
    assert "M84.0 93.0L940.0 93.0" in loss_curve(StageRecord("flat", 1.0, 10, (3.0, 3.0)))
    assert loss_curve(StageRecord("one", 1.0, 10, (3.0,))) == ""
    assert Page(loss_curve(StageRecord("long", 1.0, 10, tuple(map(float, range(100)))))).all("circle") == []
