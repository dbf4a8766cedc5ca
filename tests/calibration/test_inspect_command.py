import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch")

from guard.cli import main  # noqa: E402
from tests.calibration.families import folded_proto  # noqa: E402
from tests.tiny_models import linear_classifier  # noqa: E402

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo" / "model.onnx"


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_the_demo_model_is_shown_with_its_layers_stages_and_folded_batch_norm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = inspected(capsys, str(DEMO))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith(f"model {DEMO} (onnx, opset 20, by pytorch ")
    assert "input images FP32 batch x 3 x 32 x 32 NCHW, values unknown" in lines
    assert "output logits FP32, 10 classes" in lines
    # 2 * 16 maps of 32 x 32 pixels * 3 channels * 3 x 3 weights
    assert "stem Conv2d 16 x 32 x 32 432 884.74 k" in lines
    assert "batch norm partly folded: 7 layers, 6 convolutions without" in lines
    assert [line.split(maxsplit=2)[2] for line in lines[-3:]] == [
        "16 x 32 x 32",
        "32 x 16 x 16",
        "64 x 8 x 8",
    ]


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(inspected(capsys, str(DEMO), "--json"))
    assert record["parameters"] == sum(layer["parameters"] for layer in record["layers"]) == 174_842
    assert record["flops"] == sum(layer["flops"] for layer in record["layers"])
    assert record["batch_norm"]["verdict"] == "partly folded"
    assert [stage["channels"] for stage in record["stages"]] == [16, 32, 64]


def test_products_of_attention_are_counted_for_one_image_wherever_the_batch_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(folded_proto("vit"), tmp_path / "vit.onnx")
    record = json.loads(inspected(capsys, str(tmp_path / "vit.onnx"), "--json"))
    layers = {layer["name"]: layer for layer in record["layers"]}
    block = "encoder.layers.encoder_layer_0.self_attention"
    assert layers[f"{block}.in_proj"]["shape"] == [17, 96]
    assert layers[f"{block}.in_proj"]["flops"] == 2 * 17 * 32 * 96
    product = layers[f"{block}_MatMul_1".replace(".", "_")]
    assert (product["shape"], product["flops"]) == ([4, 17, 17], 2 * 4 * 17 * 17 * 8)


def test_uint8_images_tell_their_range_and_a_perceptron_has_no_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(linear_classifier(datatype="UINT8"), tmp_path / "m.onnx")
    text = inspected(capsys, str(tmp_path / "m.onnx"))
    assert "values 0 to 255" in text
    assert "none: the network has no feature maps" in text


def test_a_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "m.pth")]) == 2
    assert "is a pickle" in capsys.readouterr().err


def test_help_says_that_a_factory_runs_code_and_declaring_flags_needs_no_torch() -> None:
    code = (
        "import sys; from guard.cli import main\n"
        "try: main(['inspect', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "RUNS ITS CODE" in " ".join(done.stdout.split())
