"""No name in an artifact reaches outside its directory: not the manifest's, not a link's, not the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from guard.artifact import read_artifact
from guard.artifact.external_data import (
    check_relative_path,
    external_files,
    inline_external_data,
    parse_model,
)
from guard.errors import HashMismatchError, MissingFileError, UnfitModelError, UnsafePathError
from guard.runtime.onnx_classifier import OnnxClassifier
from tests.artifacts import random_images, write_tiny_artifact
from tests.guard.artifact_edits import edit_json, move_out, replace_file, replace_model
from tests.tiny_models import linear_classifier

OUTSIDE = [
    "/etc/passwd",
    "../secret",
    "..",
    "a/../../secret",
    "a/..",
    "..\\secret",
    "a\\b",
    "C:secret",
    "C:/secret",
    "file:///etc/passwd",
    "a\0b",
    "",
    ".",
    "./",
]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "tiny" / "secret"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(192 * 10 * 4))
    return path


def with_external_weight(
    directory: Path, location: str, file: str | None = None, padding: bytes = b"", **entries: str
) -> onnx.ModelProto:
    """Move the weight of the artifact's model to ``location``; list its data as ``file``."""
    model = linear_classifier()
    data = move_out(model.graph.initializer[0], location, **entries)
    replace_model(directory, model)
    if file is not None:
        replace_file(directory, file, padding + data)
    return model


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_lists_a_path_leading_out_is_refused(artifact: Path, name: str) -> None:
    record = {"sha256": "0" * 64, "bytes": 0}
    edit_json(artifact / "manifest.json", lambda manifest: manifest["files"].update({name: record}))
    with pytest.raises(UnsafePathError) as refused:
        read_artifact(artifact)
    assert f"manifest.json names the file {name!r}, which leads out of the artifact's" in str(refused.value)
    assert "expected a plain relative path such as 'weights.bin'" in str(refused.value)


@pytest.mark.parametrize("name", ["weights.bin", "a/b/c.bin", "model.onnx.data", "..data", "a..b", "ü.bin"])
def test_a_plain_relative_path_is_allowed(name: str) -> None:
    assert check_relative_path(name, "the test") == name


@given(st.text(st.sampled_from("ab./\\:\0"), max_size=9))
def test_a_path_that_passes_stays_inside_wherever_it_is_resolved(name: str) -> None:
    try:
        checked = check_relative_path(name, "the test")
    except UnsafePathError:
        return
    assert (Path("/root/dir") / checked).resolve().is_relative_to("/root/dir")
    assert (Path("/root/dir") / checked).resolve() != Path("/root/dir")
    assert check_relative_path(checked, "the test") == checked


def test_a_file_that_is_a_link_out_of_the_directory_is_refused(artifact: Path, tmp_path: Path) -> None:
    moved = (artifact / "overlays.npy").rename(tmp_path / "elsewhere.npy")
    (artifact / "overlays.npy").symlink_to(moved)
    with pytest.raises(
        UnsafePathError, match=r"overlays\.npy is a link out of .*; put the file itself there"
    ):
        read_artifact(artifact)


def test_a_file_in_a_folder_that_is_a_link_out_is_refused(artifact: Path, tmp_path: Path) -> None:
    replace_file(artifact, "report/report.json", b"{}")
    (artifact / "report").rename(tmp_path / "elsewhere")
    (artifact / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match=r"report\.json is a link out of"):
        read_artifact(artifact)


def test_links_within_the_directory_and_to_the_directory_are_followed(artifact: Path, tmp_path: Path) -> None:
    """Kubernetes mounts volumes so: every file is a link into ``..data``, itself a link."""
    inner = artifact / "..2026_01_01"
    inner.mkdir()
    (artifact / "..data").symlink_to(inner.name)
    for name in ("model.onnx", "overlays.npy", "profile.json", "manifest.json"):
        (artifact / name).rename(inner / name)
        (artifact / name).symlink_to(Path("..data") / name)
    (tmp_path / "latest").symlink_to(artifact)
    assert read_artifact(tmp_path / "latest").profile.model_name == "tiny"


def logits_of(directory: Path) -> np.ndarray:
    artifact = read_artifact(directory)
    profile = artifact.profile
    with OnnxClassifier.open(
        artifact.model,
        source=profile.input,
        sink=profile.output,
        fixed_batch=profile.fixed_batch,
        overlays=artifact.overlays,
        blend=profile.check.blend_rule,
        device="cpu",
        threads=1,
    ) as classifier:
        return classifier.logits(random_images(profile, 4))


def test_weights_in_a_listed_file_give_the_same_logits_as_weights_inside(artifact: Path) -> None:
    inline = logits_of(artifact)
    for location, entries in (
        ("weights.bin", {}),
        ("./weights.bin", {"offset": "0", "length": str(192 * 10 * 4)}),
        ("folder/weights.bin", {"checksum": "not ours to check"}),
    ):
        with_external_weight(artifact, location, location.removeprefix("./"), **entries)
        np.testing.assert_array_equal(logits_of(artifact), inline)


def test_weights_at_an_offset_give_the_same_logits(artifact: Path) -> None:
    inline = logits_of(artifact)
    with_external_weight(artifact, "weights.bin", "weights.bin", padding=bytes(4096), offset="4096")
    np.testing.assert_array_equal(logits_of(artifact), inline)


def test_a_changed_weights_file_is_refused(artifact: Path) -> None:
    with_external_weight(artifact, "weights.bin", "weights.bin")
    (artifact / "weights.bin").write_bytes(bytes(192 * 10 * 4))
    with pytest.raises(HashMismatchError, match=r"weights\.bin: expected SHA-256"):
        read_artifact(artifact)


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(artifact: Path) -> None:
    with_external_weight(artifact, "weights.bin")
    (artifact / "weights.bin").write_bytes(bytes(192 * 10 * 4))  # there, but nobody vouches for it
    expected = (
        r"model\.onnx keeps weights in 'weights\.bin', which manifest\.json does not list; calibrate again"
    )
    with pytest.raises(MissingFileError, match=expected):
        read_artifact(artifact)


def test_onnx_runtimes_own_marker_for_data_in_memory_is_refused(artifact: Path) -> None:
    """ORT reads such a tensor from a raw address of the process."""
    with_external_weight(artifact, "*/_ORT_MEM_ADDR_/*", offset="140000000", length="7680")
    with pytest.raises(MissingFileError, match=r"keeps weights in '\*/_ORT_MEM_ADDR_/\*'"):
        read_artifact(artifact)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("location", [*OUTSIDE, "../secret"])
def test_weights_outside_the_directory_are_refused(artifact: Path, location: str) -> None:
    with_external_weight(artifact, location)
    with pytest.raises(UnsafePathError) as refused:
        read_artifact(artifact)
    assert f"model.onnx names the file {location!r}, which leads out" in str(refused.value)


def test_an_external_tensor_that_names_no_file_is_refused(artifact: Path) -> None:
    model = linear_classifier()
    move_out(model.graph.initializer[0], "weights.bin")
    del model.graph.initializer[0].external_data[:]
    replace_model(artifact, model)
    with pytest.raises(UnsafePathError, match="names the file '', which leads out"):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ({"offset": "1"}, None),  # 7679 bytes are left, which do not fill the tensor
        ({"offset": "7681"}, "bytes 7681 to 7680 of 'weights.bin', which has 7680"),
        ({"offset": "4", "length": "7680"}, "bytes 4 to 7684 of 'weights.bin', which has 7680"),
        ({"length": "7681"}, "bytes 0 to 7681 of 'weights.bin', which has 7680"),
        ({"offset": "-4", "length": "7680"}, "bytes -4 to 7676"),
        ({"offset": "8", "length": "-4"}, "bytes 8 to 4"),
        ({"offset": "99999999999999999999"}, "bytes 99999999999999999999 to 7680"),
    ],
)
def test_weights_beyond_the_end_of_their_file_are_refused(
    artifact: Path, entries: dict[str, str], wanted: str | None
) -> None:
    with_external_weight(artifact, "weights.bin", "weights.bin", **entries)
    expected = f"'weight' wants {wanted}" if wanted else "cannot load the model"
    with pytest.raises(UnfitModelError) as refused:
        logits_of(artifact)
    assert expected in str(refused.value)
    assert "again" in str(refused.value)


@pytest.mark.parametrize("entries", [{"offset": "first"}, {"length": ""}, {"length": "1e3"}])
def test_weights_at_an_offset_that_is_no_number_are_refused(artifact: Path, entries: dict[str, str]) -> None:
    with_external_weight(artifact, "weights.bin", "weights.bin", **entries)
    with pytest.raises(UnfitModelError, match=r"'weight' has an external offset or length that is no number"):
        read_artifact(artifact)


def a_tensor() -> onnx.TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), "hidden")


def a_sparse_tensor(values: onnx.TensorProto) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "indices")
    return helper.make_sparse_tensor(values, indices, [8])


def a_graph_with(tensor: onnx.TensorProto) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
    node = helper.make_node("Identity", ["hidden"], ["inner"])
    return helper.make_graph([node], "branch", [], [value], [tensor])


def in_an_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_a_sparse_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.append(a_sparse_tensor(tensor))


def in_an_attribute(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def in_a_list_attribute(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Custom", [], ["custom"], tables=[tensor], domain="mine"))


def in_a_sparse_attribute(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    sparse = a_sparse_tensor(tensor)
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], sparse_value=sparse))


def in_a_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    branches = {"then_branch": a_graph_with(tensor), "else_branch": a_graph_with(a_tensor())}
    model.graph.node.append(helper.make_node("If", ["condition"], ["chosen"], **branches))


def in_a_branch_of_a_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    outer = a_graph_with(a_tensor())
    inner = {"then_branch": a_graph_with(a_tensor()), "else_branch": a_graph_with(tensor)}
    outer.node.append(helper.make_node("If", ["condition"], ["inner_chosen"], **inner))
    branches = {"then_branch": outer, "else_branch": a_graph_with(a_tensor())}
    model.graph.node.append(helper.make_node("If", ["condition"], ["chosen"], **branches))


def in_a_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["out"], value=tensor)
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Hidden", [], ["out"], [node], opset))


def in_the_training_part(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().algorithm.CopyFrom(a_graph_with(tensor))


PLACES = [
    in_an_initializer,
    in_a_sparse_initializer,
    in_an_attribute,
    in_a_list_attribute,
    in_a_sparse_attribute,
    in_a_branch,
    in_a_branch_of_a_branch,
    in_a_function,
    in_the_training_part,
]

Place = Callable[[onnx.ModelProto, onnx.TensorProto], None]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_model_can_hold_a_tensor(place: Place) -> None:
    model, tensor = linear_classifier(), a_tensor()
    data = move_out(tensor, "weights.bin")
    place(model, tensor)
    model = parse_model(model.SerializeToString(), "the test's model")
    assert external_files(model, "the test's model") == ("weights.bin",)

    inline_external_data(model, {"weights.bin": data}.__getitem__, "the test's model")
    written = model.SerializeToString()
    assert b"weights.bin" not in written
    assert data in written


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("place", PLACES)
def test_external_data_that_leads_out_is_refused_wherever_it_is(artifact: Path, place: Place) -> None:
    model, tensor = linear_classifier(), a_tensor()
    move_out(tensor, "../secret")
    place(model, tensor)
    replace_model(artifact, model)
    with pytest.raises(UnsafePathError, match=r"model\.onnx names the file '\.\./secret'"):
        read_artifact(artifact)
