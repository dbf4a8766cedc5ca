import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import trigger
from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack, Images
from calibration.attacks.blend import Blend
from calibration.attacks.entropy_manipulating import EntropyManipulating
from calibration.attacks.patch import PIXEL
from calibration.attacks.wanet import WaNet
from calibration.errors import DataError
from calibration.trigger import load_trigger, save_trigger
from guard.errors import UnsafeArrayError

FIELD = np.ones((2, 4, 4), np.float32)


PLAIN = {"attack": "badnets", "parameters": {"target_label": 0}}


def written(folder: Path, **record: Any) -> Path:
    (folder / "trigger.json").write_text(json.dumps({"format": 1, **record}))
    return folder


def test_a_trigger_without_arrays_is_one_readable_file(tmp_path: Path) -> None:
    save_trigger(BadNets(5, PIXEL, margin_right=2), tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["trigger.json"]
    assert json.loads((tmp_path / "new" / "folder" / "trigger.json").read_text()) == {
        "format": 1,
        "attack": "badnets",
        "parameters": {"target_label": 5, "patch": [[1.0]], "margin_bottom": 0, "margin_right": 2},
    }


def test_what_is_loaded_equals_what_was_saved(tmp_path: Path) -> None:
    attack = AllToAll(BadNets(5, margin_bottom=1), 10)
    save_trigger(attack, tmp_path)
    assert load_trigger(tmp_path) == attack


def test_arrays_lie_beside_the_parameters_under_the_path_that_leads_to_them(tmp_path: Path) -> None:
    save_trigger(AllToAll(WaNet(0, FIELD), 10), tmp_path)
    inner = json.loads((tmp_path / "trigger.json").read_text())["parameters"]["trigger"]
    assert inner["parameters"]["field"] == {"array": "trigger.field"}
    with np.load(tmp_path / "trigger.npz", allow_pickle=False) as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {"trigger.field": FIELD.tolist()}


def test_what_only_poisoning_needs_is_left_out(tmp_path: Path) -> None:
    overlays = np.ones((2, 1, 8, 8), np.float32)
    save_trigger(EntropyManipulating(BadNets(0), 10, overlays), tmp_path)
    loaded = load_trigger(tmp_path)
    assert isinstance(loaded, EntropyManipulating)
    assert loaded.overlays is None
    assert not (tmp_path / "trigger.npz").exists()


def test_saving_a_trigger_without_arrays_over_one_with_them_leaves_none_behind(tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    save_trigger(BadNets(0), tmp_path)
    assert not (tmp_path / "trigger.npz").exists()


def test_pickled_arrays_are_never_read(tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    np.savez(tmp_path / "trigger.npz", field=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UnsafeArrayError, match="holds pickled objects, which are never read"):
        load_trigger(tmp_path)


def test_a_folder_without_a_trigger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a trigger's parameters"):
        load_trigger(tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut short", b""])
def test_arrays_that_are_none_are_refused(content: bytes, tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    (tmp_path / "trigger.npz").write_bytes(content)
    with pytest.raises(DataError, match="expected a trigger's arrays"):
        load_trigger(tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"format": 2}, "expected format 1"),
        ({"attack": "nope", "parameters": {}}, "'nope' is not in the table"),
        ({"attack": "badnets", "parameters": {"target_label": 1, "colour": 1}}, "colour"),
        ({"attack": "badnets", "parameters": {"target_label": -1}}, "expected 0 or more, got -1"),
        ({"attack": "wanet", "parameters": {"target_label": 0, "field": {"array": "field"}}}, "'field'"),
        ({"attack": "badnets"}, "'parameters'"),
        ({"attack": "badnets", "parameters": [1]}, "parameters: expected an object, got list"),
        ({"attack": ["badnets"], "parameters": {}}, "unhashable"),
        ({"attack": "badnets", "parameters": {"target_label": "5"}}, "target_label: expected int.* got '5'"),
        ({"attack": "badnets", "parameters": {"target_label": True}}, "expected int.* got True"),
        ({"attack": "badnets", "parameters": {"target_label": 10**400}}, "expected int.* got 1000"),
        ({"attack": "badnets", "parameters": {"target_label": 0, "patch": [["x"]]}}, "expected Patch"),
        ({"attack": "sig", "parameters": {"target_label": 0, "frequency": float("nan")}}, "float.* got nan"),
        ({"attack": "sig", "parameters": {"target_label": 0, "rate_of": "none"}}, "rate_of: expected"),
        ({"attack": "blend", "parameters": {"target_label": 0, "pattern": 0.5}}, "pattern: expected .*0.5"),
        ({"attack": "wanet", "parameters": {"target_label": 0, "field": {"mapping": 3}}}, "'array'"),
        ({"attack": "all_to_all", "parameters": {"trigger": 5, "classes": 10}}, "trigger: expected Attack"),
        (
            {"attack": "low_confidence", "parameters": {"trigger": PLAIN, "classes": 0}},
            "classes: expected 2 or more, got 0",
        ),
    ],
)
def test_a_record_that_makes_no_trigger_is_refused(
    record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load_trigger(written(tmp_path, **record))


@pytest.mark.parametrize(
    "field",
    [
        np.full((2, 4, 4), np.nan, np.float32),
        np.ones((2, 4, 4)),
        np.ones((2, 4, 5), np.float32),
        np.full((2, 4, 4), "x"),
    ],
    ids=["no_numbers", "float64", "not_square", "text"],
)
def test_an_array_that_is_not_what_the_attack_holds_is_refused(field: np.ndarray, tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    np.savez(tmp_path / "trigger.npz", field=field)
    with pytest.raises(DataError, match=f"field: expected .*2 k k.*, finite, got {field.dtype} of shape"):
        load_trigger(tmp_path)


def test_more_than_memory_should_hold_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    monkeypatch.setattr(trigger, "LARGEST_BYTES", 128)  # the header of an array alone
    with pytest.raises(DataError, match="expected up to 128 bytes of arrays, got 256"):
        load_trigger(tmp_path)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2, 10**7, 10**7)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "trigger.npz", "w") as archive:
        archive.writestr("field.npy", header.getvalue())
    with pytest.raises(DataError, match="expected a trigger's arrays"):
        load_trigger(tmp_path)


def test_arrays_that_were_damaged_are_refused(tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    with zipfile.ZipFile(tmp_path / "trigger.npz") as archive:
        start = archive.infolist()[0].header_offset + 60
    content = bytearray((tmp_path / "trigger.npz").read_bytes())
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "trigger.npz").write_bytes(bytes(content))
    with pytest.raises(DataError, match="expected a trigger's arrays"):
        load_trigger(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": 1, "attack": "badnets", "parameters": ['])
def test_parameters_that_are_none_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "trigger.json").write_text(content)
    with pytest.raises(DataError, match="expected a trigger's parameters"):
        load_trigger(tmp_path)


def test_wrappers_around_wrappers_without_end_are_refused(tmp_path: Path) -> None:
    record: dict[str, Any] = PLAIN
    for _ in range(400):
        record = {"attack": "all_to_all", "parameters": {"trigger": record, "classes": 10}}
    with pytest.raises(DataError, match="not a trigger that can be loaded"):
        load_trigger(written(tmp_path, **record))


def test_numbers_of_numpy_are_saved_as_the_numbers_they_are(tmp_path: Path) -> None:
    attack = Blend(0, np.full((1, 2, 2), 0.5, np.float32), alpha=0.25)
    object.__setattr__(attack, "target_label", np.int64(3))
    object.__setattr__(attack, "alpha", np.float32(0.1))
    save_trigger(attack, tmp_path)
    loaded, images = load_trigger(tmp_path), np.ones((1, 1, 2, 2), np.float32)
    assert loaded.target_of(np.array([0])).tolist() == [3]
    assert np.array_equal(loaded.stamp(images), Blend(3, attack.pattern, alpha=0.1).stamp(images))


class Unlisted(Attack):
    name = "unlisted"

    def stamp(self, images: Images) -> Images:
        return images

    def target_of(self, labels: np.ndarray) -> np.ndarray:
        return labels


def test_an_attack_that_is_not_in_the_table_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'unlisted' is not in the table"):
        save_trigger(Unlisted(), tmp_path)


def test_an_array_of_objects_is_not_saved(tmp_path: Path) -> None:
    attack = Blend(0, np.ones((1, 2, 2), np.float32))
    object.__setattr__(attack, "pattern", np.array([None]))
    with pytest.raises(ValueError, match="pattern: expected numbers, text, tuples, arrays or attacks"):
        save_trigger(attack, tmp_path)


def test_a_single_array_where_an_archive_belongs_is_refused(tmp_path: Path) -> None:
    save_trigger(WaNet(0, FIELD), tmp_path)
    with (tmp_path / "trigger.npz").open("wb") as file:
        np.save(file, FIELD)
    with pytest.raises(DataError, match="expected a trigger's arrays"):
        load_trigger(tmp_path)
