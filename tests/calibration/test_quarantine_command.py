"""``guard quarantine``: what is listed, shown and exported is what was put there."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.contact_sheet import as_pixels, contact_sheet
from calibration.quarantine_command import QUARANTINE, _moment
from guard.cli import main
from guard.detection.threshold import Tier, Verdict
from guard.quarantine import Bounds, ItemRecord, read_contents
from guard.quarantine.store import Store
from tests.records import incident, picture

NOW = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of one model, one of them twice, and one of another in another shape."""
    root = tmp_path / "quarantine"
    store = Store(root, Bounds(100, 2**30, 1e9))
    flagged = {"verdict": Verdict.FLAG, "tier": Tier.FLAG, "version": "2", "label": -1}
    store.keep(
        [
            incident(1, at=NOW, score=-0.5),
            incident(2, at=NOW + 1, label=7),
            incident(2, at=NOW + 2),
            incident(3, at=NOW + 3, **flagged),
            incident(
                np.zeros((8, 8, 1), np.uint8), at=NOW + 4, model="gray\x1b[31m", layout="NHWC", high=(255.0,)
            ),
        ],
        NOW,
    )
    store.close()
    return root


def items(folder: Path, model: str = "tiny") -> tuple[ItemRecord, ...]:
    return read_contents(folder, model=model).items


def test_a_list_is_a_table_with_the_newest_first_and_nothing_that_moves_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny" / "notes.txt").touch()

    assert main(["quarantine", "list", str(folder)]) == 0

    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "\x1b" not in out
    assert lines[0] == ["id", "model", "version", "verdict", "tier", "score", "p-value", "label", "inputs"]
    assert lines[1][1:] == ["gray\\x1b[31m", "1", "reject", "block", "-0.1250", "0.01", "5", "1"]
    assert lines[2][1:] == ["tiny", "2", "flag", "flag", "-0.1250", "0.01", "-", "1"]
    assert lines[3][1:] == ["tiny", "1", "reject", "block", "-0.1250", "0.01", "7", "2"]
    assert lines[4][1:] == ["tiny", "1", "reject", "block", "-0.5000", "0.01", "5", "1"]
    assert out.splitlines()[5] == "items: 4, inputs: 5"
    assert "not the guard's: 1, such as " in out.splitlines()[6]


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        ([], [5, -1, 7, 5]),
        (["--model", "tiny"], [-1, 7, 5]),
        (["--model", "../tiny"], []),
        (["--verdict", "flag"], [-1]),
        (["--model-version", "1"], [5, 7, 5]),
        (["--since", "2027-01-15T08:00:02"], [5, -1, 7]),
        (["--since", "2027-01-15T09:00:03.5+01:00"], [5]),
    ],
)
def test_a_list_as_json_has_every_field_of_what_was_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], labels: list[int]
) -> None:
    assert main(["quarantine", "list", str(folder), "--json", *flags]) == 0

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [record["label"] for record in found] == labels
    assert all(set(record) == set(ItemRecord.model_fields) for record in found)


def test_a_moment_is_a_time_or_an_age() -> None:
    assert _moment("2027-01-15T08:00:00") == _moment("2027-01-15T09:00:00+01:00") == NOW
    assert time.time() - _moment("2h") == pytest.approx(7200, abs=60)
    with pytest.raises(Exception, match="expected a time such as"):
        _moment("yesterday")


def test_an_item_is_shown_with_all_that_is_known_and_its_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = items(folder)[1]

    assert main(["quarantine", "show", str(folder), item.id, "--png", str(tmp_path / "item.png")]) == 0

    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(shown) == set(ItemRecord.model_fields)
    assert (shown["at"], shown["last_at"]) == ("2027-01-15T08:00:01.000Z", "2027-01-15T08:00:02.000Z")
    assert (shown["count"], shown["client"], shown["shape"]) == ("2", item.client, "[3, 8, 8]")
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "item.png").read_bytes())))
    np.testing.assert_array_equal(pixels, np.rint(picture(2).astype(np.float64).transpose(1, 2, 0) * 255))


def test_an_export_is_what_heal_reads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "suspects.npz", tmp_path / "sheet.png"
    command = ["quarantine", "export", str(folder), "--model", "tiny", "--out", str(out)]

    assert main([*command, "--sheet", str(sheet)]) == 0

    with np.load(out, allow_pickle=False) as archive:
        arrays = dict(archive)
    assert set(arrays) == {"images", "scores", "labels", "times", "ids"}
    np.testing.assert_array_equal(arrays["images"], np.stack([picture(n) for n in (3, 2, 1)]))
    assert arrays["images"].dtype == np.float32
    np.testing.assert_array_equal(arrays["scores"], np.array([-0.125, -0.125, -0.5]))
    np.testing.assert_array_equal(arrays["labels"], np.array([-1, 7, 5], np.int64))
    np.testing.assert_array_equal(arrays["times"], NOW + np.array([3.0, 1.0, 0.0]))
    assert arrays["ids"].tolist() == [item.id for item in items(folder)]
    assert [arrays[key].dtype for key in ("scores", "labels", "times")] == [np.float64, np.int64, np.float64]
    assert Image.open(io.BytesIO(sheet.read_bytes())).size == (3 * 102 + 6, 116 + 6)
    assert capsys.readouterr().out.splitlines()[0] == f"3 of 3 items written to {out}"
    assert main([*command, "--limit", "1"]) == 0
    with np.load(out, allow_pickle=False) as archive:
        assert archive["ids"].tolist() == [items(folder)[0].id]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_fit_into_one_array_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(folder, Bounds(100, 2**30, 1e9))
    store.keep([incident(np.zeros((8, 8, 3), np.uint8), layout="NHWC", version="3", at=NOW)], NOW)
    store.close()
    command = ["quarantine", "export", str(folder), "--model", "tiny", "--out", str(tmp_path / "x.npz")]

    assert main(command) == 2
    assert "(3 of (3, 8, 8) <f4 NCHW, 1 of (8, 8, 3) |u1 NHWC)" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
    assert main([*command, "--model-version", "3"]) == 0


def test_what_is_damaged_or_not_there_is_told_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = items(folder)[0]
    image = folder / "tiny" / f"{newest.id}.npy"
    export = ["quarantine", "export", str(folder), "--model", "tiny", "--out", str(tmp_path / "x.npz")]

    def told(*argv: str) -> str:
        assert main(list(argv)) == 2
        return capsys.readouterr().err

    assert "is not a folder" in told("quarantine", "list", str(tmp_path / "nowhere"))
    assert "there is no item '../x'" in told("quarantine", "show", str(folder), "../x")
    assert "there is no item" in told("quarantine", "show", str(folder), "20270115T080000000000Z-00000000")
    assert "holds nothing of model 'other'" in told(*export[:4], "other", *export[5:])
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    assert "it was changed" in told(*export)
    image.unlink()
    assert main(export) == 0
    assert "2 of 3 items written" in capsys.readouterr().out
    image.symlink_to("/etc/passwd")
    assert "is a link" in told(*export)
    image.unlink()
    (folder / "tiny" / f"{newest.id}.json").write_text("{}")
    assert "cannot be read" in told("quarantine", "show", str(folder), newest.id)
    with pytest.raises(SystemExit, match="2"):
        main([*export, "--limit", "0"])


def test_pickles_are_not_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    item = items(folder)[0]
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "tiny" / f"{item.id}.npy").write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    forged = item.model_copy(update={"sha256": digest, "bytes": len(content.getvalue())})
    (folder / "tiny" / f"{item.id}.json").write_text(forged.model_dump_json())

    assert main(["quarantine", "show", str(folder), item.id, "--png", str(tmp_path / "x.png")]) == 2
    assert "run code" in capsys.readouterr().err


def test_without_its_extra_the_sheet_says_which_one_to_install(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "calibration.contact_sheet")
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    show = ["quarantine", "show", str(folder), items(folder)[0].id]

    assert main(show) == 0
    assert main([*show, "--png", str(tmp_path / "x.png")]) == 2
    assert "pip install 'inference-guard[calibrate]'" in capsys.readouterr().err


def test_pixels_span_the_range_of_each_channel() -> None:
    image = np.stack([np.full((2, 2), value, np.float32) for value in (-1.0, 0.0, 3.0)])
    ranges = {"low": (-1.0, -2.0, 0.0), "high": (1.0, 2.0, 2.0)}

    pixels = as_pixels(image, layout="NCHW", **ranges)  # type: ignore[arg-type]

    assert pixels[0, 0].tolist() == [0, 128, 255]
    np.testing.assert_array_equal(pixels, as_pixels(np.moveaxis(image, 0, -1), layout="NHWC", **ranges))  # type: ignore[arg-type]
    gray = as_pixels(np.full((5, 4, 1), 255, np.uint8), layout="NHWC", low=(0.0,), high=(255.0,))
    assert gray.shape == (5, 4, 3)
    assert gray.min() == 255


def test_a_sheet_shows_every_picture_in_its_place_and_is_the_same_each_time() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (13, 3), np.uint8)
    pictures = [np.broadcast_to(colour, (4, 4, 3)).copy() for colour in colours]

    content = contact_sheet(pictures, ["-0.125 ->5"] * 13)
    sheet = np.asarray(Image.open(io.BytesIO(content)))

    assert sheet.shape == (2 * 116 + 6, 10 * 102 + 6, 3)
    for number, colour in enumerate(colours):
        row, column = divmod(number, 10)
        np.testing.assert_array_equal(sheet[6 + row * 116 + 48, 6 + column * 102 + 48], colour)
        caption = sheet[6 + row * 116 + 97 : 6 + row * 116 + 110, 6 + column * 102 : 6 + column * 102 + 90]
        assert caption.min() < 64
    assert content == contact_sheet(pictures, ["-0.125 ->5"] * 13)


def test_the_command_is_named_as_it_is_called() -> None:
    assert QUARANTINE.name == "quarantine"
