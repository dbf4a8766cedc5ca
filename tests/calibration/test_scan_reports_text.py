"""A scan's reports as plain text: the terminal's lines and the model card's section."""

from __future__ import annotations

import re

import pytest

from calibration.scan.reports import to_model_card, to_text
from calibration.scan.reports.words import number, percentage, printable, seconds_text
from tests.calibration.scan_results import full, hostile, inversion, many, result

SHA = "4f1c" * 16

TEXT = f"""\
BACKDOORED: backdoor found in models/resnet18.onnx
sha256 {SHA}, 10 classes, 900 + 100 images, accuracy 93.4%, 3 min 27 s

  neural_cleanse  backdoored    1 of 10 flagged, p = 1.5e-07, 2 min 22 s
                  - label 3 needs a trigger of only 9; the median is 96
  pairs           inconclusive  1 of 90 flagged, p = 0.04, 1 min 1 s
                  - 1→3 stands out, but only 12 held images of class 1 are there to confirm it
  spectral        backdoored    1 of 2 flagged, 450 suspect training rows, 3.2 s
                  - a tenth of the rows labelled 3 lie apart from the others

  scanner         label                 score        p  size    asr
  neural_cleanse  3 cat                  7.27  1.5e-07     9  99.0%
  pairs           1 automobile → 3 cat    8.5     0.04    30      –
  spectral        3 cat                  5.25        –     –      –

note: images were resized from 40 x 40

report: scan/report.html
report: scan/report.json
"""

CARD = f"""\
## Backdoor scan

**Backdoor found** (verdict: `backdoored`).

| Scanner | Verdict | Flagged | p-value |
|---|---|---|---|
| neural\\_cleanse | backdoored | 3 cat | 1.5e-07 |
| pairs | inconclusive | 1 automobile → 3 cat | 0.04 |
| spectral | backdoored | 3 cat | – |

- Model: SHA-256 `{SHA}`, 10 classes
- Clean images: 900 searched on, 100 held out, on which the model is right 93.4% of the time
"""

HOSTILE = "a|b`<script>alert(1)</script>\x1b[31m\n# [x](https://evil.example)\u202e"


def test_the_terminal_shows_the_verdict_first_and_last_where_reports_lie() -> None:
    assert to_text(full(), ("scan/report.html", "scan/report.json")) == TEXT


def test_a_clean_scan_takes_few_lines() -> None:
    lines = to_text(result(inversion(10))).splitlines()
    assert lines[0] == "CLEAN: no backdoor found in models/resnet18.onnx"
    assert lines[3] == "  neural_cleanse  clean         0 of 10 flagged, p = 0.41, 2 min 22 s"
    assert "scanner" not in "".join(lines)


def test_the_terminal_counts_what_it_leaves_out() -> None:
    lines = to_text(many(100, *range(30))).splitlines()
    assert sum(line.startswith("  neural_cleanse  ") for line in lines) == 1 + 20
    assert "  and 10 more" in lines


def test_nothing_from_outside_moves_the_terminal() -> None:
    text = to_text(hostile(HOSTILE), (HOSTILE,))
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "\\x1b[31m\\n#" in text


def test_the_card_is_short_and_ends_with_its_limits() -> None:
    card = to_model_card(full())
    assert card.startswith(CARD)
    assert len(card.splitlines()) == 16
    assert card.endswith("it does not prove that there is none.\n")


def test_nothing_from_outside_is_markup_in_the_card() -> None:
    card = to_model_card(hostile(HOSTILE))
    assert not re.search(r"(?<!\\)<", card)
    assert "https:" not in card
    assert card.count("\n## ") + card.startswith("## ") == 1
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_the_card_names_a_few_labels_and_counts_the_rest() -> None:
    assert "| 0 class number 0, 1 class number 1," in to_model_card(many(43, *range(9)))
    assert " and 4 more |" in to_model_card(many(43, *range(9)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-2.5, "-2.5"), (999.4, "999"), (1234.5, "1,234"), (2.5e7, "2.50e+07"), (float("nan"), "–")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_and_durations_are_read_at_a_glance() -> None:
    assert [percentage(share) for share in (0.0, 0.9995, None, float("nan"))] == ["0.0%", "100.0%", "–", "–"]
    assert [seconds_text(seconds) for seconds in (59.96, 60.0, 3600.0)] == [
        "60.0 s",
        "1 min 0 s",
        "1 h 0 min",
    ]


def test_what_cannot_be_printed_is_spelled_out() -> None:
    assert printable("a\u202eb\tc\u200bé") == "a\\u202eb\\tc\\u200bé"
