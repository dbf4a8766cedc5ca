import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from calibration.export import ExportRecord, export_onnx  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from guard.errors import UnfitModelError  # noqa: E402
from tests.calibration.families import EXPORTERS, FAMILIES, exported, folded_proto, images, lessons, lively  # noqa: E402
from tests.calibration.onnx_running import difference, runtime  # noqa: E402

LARGEST_DIFFERENCE = 1e-4
RECORD = ExportRecord("guard 0", "none", "0" * 64)
QUICK = ("resnet", "preactivation_wide_resnet", "mobilenet_v3", "vit")


def loss_of(module: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module.eval()(pictures), labels))


def one_epoch(module: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    module.train()
    for start in range(0, len(labels), 8):
        batch = slice(start, start + 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(pictures[batch]), labels[batch]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


def check(name: str, exporter: str, *, round_trip: bool) -> None:
    quick = exporter == "torchscript"
    proto = folded_proto(name) if quick else exported(lively(name), images(name, 2), exporter)
    module = import_onnx(proto, f"{name}.onnx")
    batches = [images(name, count).numpy() for count in (1, 5)]
    assert max(difference(proto, module, batch) for batch in batches) < LARGEST_DIFFERENCE
    if round_trip:
        again = export_onnx(module, proto, RECORD)
        gaps = [abs(runtime(proto, batch)[0] - runtime(again, batch)[0]).max() for batch in batches]
        assert max(gaps) < LARGEST_DIFFERENCE
    pictures, labels = (torch.from_numpy(part) for part in lessons(name))
    before = loss_of(module, pictures, labels)
    one_epoch(module, pictures, labels)
    assert loss_of(module, pictures, labels) < before


@pytest.mark.parametrize("name", QUICK)
def test_a_network_is_imported_and_learns(name: str) -> None:
    check(name, "torchscript", round_trip=False)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_imported_learns_and_goes_back(name: str, exporter: str) -> None:
    check(name, exporter, round_trip=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preactivation_wide_resnet", "swin"])
def test_an_imported_network_trains_in_channels_last_and_half_precision(name: str) -> None:
    module = import_onnx(folded_proto(name), f"{name}.onnx").to(memory_format=torch.channels_last).train()
    pictures, labels = (torch.from_numpy(part) for part in lessons(name, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(pictures.to(memory_format=torch.channels_last))
    nn.functional.cross_entropy(logits.float(), labels).backward()
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in module.parameters())


@pytest.mark.parametrize(("name", "opset"), [("convnext", 11), ("shufflenet", 13), ("vit", 16)])
def test_older_opsets_spell_operators_out_and_are_imported_all_the_same(name: str, opset: int) -> None:
    proto = exported(lively(name), images(name, 2), "torchscript", opset=opset)
    module = import_onnx(proto, f"{name}.onnx")
    assert difference(proto, module, images(name, 5).numpy()) < LARGEST_DIFFERENCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "operator"), [("vit", "Attention"), ("convnext", "Gelu")])
def test_a_newer_opset_with_attention_as_one_operator_is_imported(name: str, operator: str) -> None:
    proto = exported(lively(name), images(name, 2), "dynamo", opset=23)
    assert operator in {node.op_type for node in proto.graph.node}
    module = import_onnx(proto, f"{name}.onnx")
    assert difference(proto, module, images(name, 5).numpy()) < LARGEST_DIFFERENCE


def check_bound(name: str, exporter: str, batch: int) -> None:
    net = lively(name)
    proto = exported(net, images(name, batch), exporter, free=False)
    module = import_onnx(proto, f"{name}.onnx")
    assert difference(proto, module, images(name, batch).numpy()) < LARGEST_DIFFERENCE
    with torch.no_grad():
        gap = (module(images(name, 5)) - net(images(name, 5))).abs().max()
    assert float(gap) < LARGEST_DIFFERENCE


@pytest.mark.parametrize(("name", "batch"), [("vit", 1), ("vit", 4), ("shufflenet", 4)])
def test_a_network_bound_to_one_batch_size_is_set_free_of_it(name: str, batch: int) -> None:
    check_bound(name, "torchscript", batch)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_bound_to_single_images_is_set_free(name: str, exporter: str) -> None:
    check_bound(name, exporter, 1)


@pytest.mark.slow
def test_a_network_that_cannot_be_set_free_of_its_batch_size_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnfitModelError, match="bound to batches of 4, export it with a free batch axis"):
        check_bound("swin", "torchscript", 4)
