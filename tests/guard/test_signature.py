"""What is read from a graph, and the words in which an unfit one is refused."""

from __future__ import annotations

import re

import onnx
import pytest
from onnx import TensorProto, helper

from guard.artifact.signature import Layout, Signature, read_signature
from guard.errors import UnfitModelError
from tests import tiny_models
from tests.tiny_models import conv_classifier, linear_classifier

WHERE = "repository/net/1/model.onnx"


def read(
    model: onnx.ModelProto, layout: Layout | None = None, size: tuple[int, int] | None = None
) -> Signature:
    return read_signature(model, WHERE, layout=layout, size=size)


def refusal(model: onnx.ModelProto, layout: Layout | None = None, size: tuple[int, int] | None = None) -> str:
    with pytest.raises(UnfitModelError) as refused:
        read(model, layout, size)
    message = str(refused.value)
    assert message.startswith(WHERE)
    return message.removeprefix(WHERE)


def with_tensors(
    inputs: list[onnx.ValueInfoProto] | None = None, outputs: list[onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """Return a model that declares these tensors; nothing of it is run."""
    model = linear_classifier()
    if inputs is not None:
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    if outputs is not None:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    return model


def images(
    element: int = TensorProto.FLOAT, axes: tuple[object, ...] = ("n", 3, 8, 8)
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("images", element, axes)


def scores(
    element: int = TensorProto.FLOAT, axes: tuple[object, ...] | None = ("n", 10)
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("scores", element, axes)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_a_classifiers_tensors_are_read_from_its_graph(datatype: str, layout: str, batch: int | None) -> None:
    model = linear_classifier((3, 8, 10), classes=7, layout=layout, datatype=datatype, batch=batch)
    assert read(model) == Signature(
        input_name="images",
        datatype=datatype,
        shape=(3, 8, 10) if layout == "NCHW" else (8, 10, 3),
        layout=layout,
        fixed_batch=batch,
        output_name="logits",
        output_datatype="FP16" if datatype == "FP16" else "FP32",
        classes=7,
    )


@pytest.mark.parametrize("batch", ["n", "", None, 0, -1])
def test_a_batch_axis_that_is_named_or_left_out_is_dynamic(batch: object) -> None:
    assert read(with_tensors([images(axes=(batch, 3, 8, 8))])).fixed_batch is None


@pytest.mark.parametrize(
    ("axes", "layout"),
    [
        ((1, 28, 28), "NCHW"),
        ((28, 28, 1), "NHWC"),
        ((3, 224, 224), "NCHW"),
        ((224, 224, 3), "NHWC"),
        ((4, 32, 32), "NCHW"),
        ((32, 32, 4), "NHWC"),
        ((3, 2, 2), "NCHW"),
    ],
)
def test_the_layout_is_told_by_an_axis_of_1_3_or_4(axes: tuple[int, ...], layout: str) -> None:
    assert read(with_tensors([images(axes=("n", *axes))])).layout == layout


@pytest.mark.parametrize("axes", [(3, 8, 3), (1, 1, 1), (3, 32, 4), (5, 32, 32), (224, 224, 224)])
def test_a_shape_that_does_not_tell_the_layout_needs_one(axes: tuple[int, int, int]) -> None:
    model = with_tensors([images(axes=("n", *axes))])
    shown = ", ".join(map(str, axes))
    assert refusal(model) == (
        f": an input of shape (?, {shown}) does not tell channels first from channels last; "
        f"say which with --layout NCHW or --layout NHWC"
    )
    assert read(model, "NCHW").layout == "NCHW"
    assert read(model, "NHWC").layout == "NHWC"
    assert read(model, "NHWC").shape == axes


def test_a_size_left_free_is_taken_from_the_caller() -> None:
    first = conv_classifier(size=(None, None))
    assert read(first, size=(24, 32)).shape == (3, 24, 32)
    last = with_tensors([images(axes=("n", "height", "width", 3))])
    assert read(last, size=(24, 32)).shape == (24, 32, 3)
    half = conv_classifier(size=(24, None))
    assert read(half, size=(24, 32)).shape == (3, 24, 32)


def test_a_size_left_free_and_not_given_is_refused() -> None:
    assert refusal(conv_classifier(size=(None, None))) == (
        ": the model leaves (3, ?, ?) of its NCHW image shape open; give height and width with --resize H W"
    )


def test_a_size_that_is_the_models_own_is_allowed_and_another_refused() -> None:
    assert read(linear_classifier(), size=(8, 8)).shape == (3, 8, 8)
    assert refusal(linear_classifier(), size=(8, 9)) == (
        ": the model takes images of shape (3, 8, 8), but the size given is (8, 9); "
        "leave the size out or give the model's own"
    )
    assert "takes images of shape (?, 8, 3), but the size given is (8, 9)" in refusal(
        with_tensors([images(axes=("n", "h", 8, 3))]), size=(8, 9)
    )


def test_initializers_listed_as_inputs_are_not_counted() -> None:
    """Exporters to IR version 3 and older list every weight among the inputs."""
    model = linear_classifier()
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.insert(0, value)
    assert len(model.graph.input) == 3
    assert read(model) == read(linear_classifier())


def test_several_inputs_are_refused() -> None:
    assert refusal(tiny_models.two_inputs()) == (
        " has 2 inputs (images, temperature), expected exactly one input; "
        "export the classifier alone, with images in and class scores out"
    )


def test_several_outputs_are_refused() -> None:
    assert refusal(tiny_models.two_outputs()) == (
        " has 2 outputs (logits, flat), expected exactly one output; "
        "export the classifier alone, with images in and class scores out"
    )


def test_no_input_and_no_output_are_refused() -> None:
    assert refusal(with_tensors(inputs=[])).startswith(" has 0 inputs (none), expected exactly one input;")
    assert refusal(with_tensors(outputs=[])).startswith(" has 0 outputs (none), expected exactly one output;")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (images(axes=("n", 16)), "FLOAT of 2 axes (?, 16)"),
        (images(axes=("n", 3, 8)), "FLOAT of 3 axes (?, 3, 8)"),
        (images(axes=("n", 3, 2, 8, 8)), "FLOAT of 5 axes (?, 3, 2, 8, 8)"),
        (images(TensorProto.DOUBLE), "DOUBLE of 4 axes (?, 3, 8, 8)"),
        (images(TensorProto.INT8), "INT8 of 4 axes (?, 3, 8, 8)"),
        (images(TensorProto.STRING, ("n",)), "STRING of 1 axes (?)"),
        (helper.make_tensor_value_info("images", TensorProto.FLOAT, None), "FLOAT of 0 axes ()"),
        (
            helper.make_tensor_sequence_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8]),
            "UNDEFINED of 0 axes ()",
        ),
    ],
)
def test_an_input_that_is_no_batch_of_images_is_refused(value: onnx.ValueInfoProto, what: str) -> None:
    assert refusal(with_tensors([value])) == (
        f": input 'images' is {what}; expected a batch of images: 4 axes of FLOAT, FLOAT16, BFLOAT16 or UINT8"
    )


def test_a_batch_of_vectors_is_refused() -> None:
    assert "input 'images' is FLOAT of 2 axes (?, 16)" in refusal(tiny_models.vector_input())


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (scores(axes=("n", 1)), "FLOAT of shape (?, 1)"),
        (scores(axes=("n",)), "FLOAT of shape (?)"),
        (scores(axes=()), "FLOAT of shape ()"),
        (scores(axes=("n", 10, 1, 1)), "FLOAT of shape (?, 10, 1, 1)"),
        (scores(axes=("n", 3, 8, 8)), "FLOAT of shape (?, 3, 8, 8)"),
        (scores(TensorProto.INT64, ("n",)), "INT64 of shape (?)"),
        (scores(TensorProto.INT64), "INT64 of shape (?, 10)"),
        (scores(TensorProto.UINT8), "UINT8 of shape (?, 10)"),
        (scores(TensorProto.DOUBLE), "DOUBLE of shape (?, 10)"),
    ],
)
def test_an_output_that_is_no_row_of_classes_is_refused(value: onnx.ValueInfoProto, what: str) -> None:
    assert refusal(with_tensors(outputs=[value])) == (
        f": output 'scores' is {what}; expected one row of at least 2 class scores for each image: "
        "2 axes of FLOAT, FLOAT16 or BFLOAT16"
    )


def test_an_image_in_place_of_classes_is_refused() -> None:
    assert "output 'images_out' is FLOAT of shape (?, 3, 8, 8)" in refusal(tiny_models.image_to_image())


@pytest.mark.parametrize("axes", [("n", "k"), (4, None), None])
def test_a_number_of_classes_that_the_graph_does_not_tell_is_left_open(
    axes: tuple[object, ...] | None,
) -> None:
    assert read(with_tensors(outputs=[scores(axes=axes)])).classes is None


def test_every_refusal_says_what_was_expected_or_what_to_do() -> None:
    for model in (
        tiny_models.two_inputs(),
        tiny_models.two_outputs(),
        tiny_models.image_to_image(),
        tiny_models.vector_input(),
        tiny_models.ambiguous_layout(),
        conv_classifier(size=(None, 8)),
    ):
        assert re.search(r"expected|say which|give height", refusal(model))


def test_reading_a_signature_leaves_the_model_as_it_was() -> None:
    model = linear_classifier()
    before = model.SerializeToString()
    read(model)
    assert model.SerializeToString() == before
