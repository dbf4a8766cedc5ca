import operator
import pickle

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, fx, nn  # noqa: E402

from calibration.errors import DataError, TooFewImagesError  # noqa: E402
from calibration.onnx_import import import_onnx  # noqa: E402
from calibration.scan.base import Bench, Labelled  # noqa: E402
from calibration.scan.parcel import Raised, pack, unpack  # noqa: E402
from tests.calibration import ray_units  # noqa: E402
from tests.calibration.families import folded_proto, images  # noqa: E402


def bench_of(model: nn.Module, pictures: Tensor) -> Bench:
    labels = torch.zeros(len(pictures), dtype=torch.int64)
    return Bench(
        model, 4, Labelled(pictures, labels), Labelled(pictures, labels), torch.zeros(3), torch.ones(3)
    )


def pictures(count: int = 4) -> Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_an_imported_network_answers_to_the_bit_after_the_trip(name: str) -> None:
    model = import_onnx(folded_proto(name), name).requires_grad_(False)
    bench = bench_of(model, images(name, 5))
    arrived = unpack(pack(bench)).model
    assert isinstance(arrived, fx.GraphModule)
    with torch.no_grad():
        assert torch.equal(arrived(bench.clean.images), model(bench.clean.images))
        assert torch.equal(arrived(bench.clean.images[:1]), model(bench.clean.images[:1]))
    assert [node.name for node in arrived.graph.nodes] == [node.name for node in model.graph.nodes]
    assert arrived.code == model.code
    assert not arrived.training


def halved_if_large(values: Tensor) -> Tensor:
    return values / 2 if values.shape[0] > 2 else values


def test_a_function_that_looks_at_sizes_stays_a_call() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(halved_if_large, (graph.placeholder("images"),)))
    module = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(Exception, match="symbolically traced"):
        pickle.loads(pickle.dumps(module))
    arrived = unpack(pack(bench_of(module, pictures()))).model
    assert torch.equal(arrived(pictures(4)), pictures(4) / 2)
    assert torch.equal(arrived(pictures(2)), pictures(2))


def test_nodes_are_found_within_slices_lists_and_options() -> None:
    graph = fx.Graph()
    given = graph.placeholder("images")
    count = graph.call_function(len, (given,))
    half = graph.call_function(operator.floordiv, (count, 2))
    front = graph.call_function(operator.getitem, (given, (slice(None, half), Ellipsis)))
    graph.output(graph.call_function(torch.cat, ([front, front],), {"dim": 1}))
    module = fx.GraphModule(nn.Module(), graph)
    arrived = unpack(pack(bench_of(module, pictures()))).model
    assert torch.equal(arrived(pictures()), module(pictures()))


def test_a_tensor_that_is_read_but_no_buffer_arrives() -> None:
    graph, root = fx.Graph(), nn.Module()
    root.constant = torch.tensor(2.5)
    graph.output(graph.call_function(torch.mul, (graph.placeholder("images"), graph.get_attr("constant"))))
    module = fx.GraphModule(root, graph)
    arrived = unpack(pack(bench_of(module, pictures()))).model
    assert torch.equal(arrived(pictures()), pictures() * 2.5)


def test_weights_used_twice_stay_one_and_ask_for_no_gradients() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer).requires_grad_(False)
    arrived = unpack(pack(bench_of(model, pictures()))).model
    assert arrived[0] is arrived[1]
    assert not any(weight.requires_grad for weight in arrived.parameters())


def test_a_slice_travels_without_the_rest_and_keeps_its_order_in_memory() -> None:
    whole = torch.rand(1000, 3, 8, 8).to(memory_format=torch.channels_last)
    data = pack(bench_of(nn.Identity(), whole[:2]))
    arrived = unpack(data).clean.images
    assert len(data) < 20_000
    assert torch.equal(arrived, whole[:2])
    assert arrived.stride() == whole[:2].stride()


def test_the_bench_is_whole() -> None:
    bench = ray_units.bench()
    arrived = unpack(pack(bench))
    assert (arrived.digest, arrived.classes, arrived.training, arrived.generated) == ("bench", 4, None, False)
    assert torch.equal(arrived.held.labels, bench.held.labels)
    assert torch.equal(arrived.high, bench.high)


def sent(error: Exception) -> Exception:
    raised: Raised = pickle.loads(pickle.dumps(Raised(error, "in unit u")))
    return raised.error()


def test_an_exception_arrives_with_its_class_message_and_facts() -> None:
    few = sent(TooFewImagesError("expected 9 images, got 2", needed=9, got=2))
    assert isinstance(few, TooFewImagesError)
    assert (str(few), few.needed, few.got) == ("expected 9 images, got 2", 9, 2)
    assert few.__notes__ == ["in unit u"]
    missing = sent(FileNotFoundError(2, "No such file", "a.npy"))
    assert isinstance(missing, FileNotFoundError)
    assert missing.filename == "a.npy"


def test_of_an_exception_that_holds_what_cannot_be_sent_the_message_arrives() -> None:
    error = DataError("no labels")
    error.source = lambda: None
    arrived = sent(error)
    assert type(arrived) is DataError
    assert str(arrived) == "no labels"
