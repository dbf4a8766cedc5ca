import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from calibration.errors import ModelError, OptionError, UnsafeModelError  # noqa: E402
from calibration.pt2_archive import read_archive, safe_archive  # noqa: E402
from calibration.trainable import load_trainable  # noqa: E402
from guard.artifact.manifest import sha256_of  # noqa: E402
from guard.errors import MissingFileError, UnfitModelError  # noqa: E402
from tests.calibration.onnx_running import difference  # noqa: E402
from tests.tiny_models import conv_classifier  # noqa: E402

IMAGES = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )

def needing(width):
    return nn.Linear(width, 2)

def not_a_network():
    return 3

class Counting(nn.Module):
    '''Reads a size as a number, where tracing cannot follow.'''

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 5)

    def forward(self, images):
        rows = [self.head(images.flatten(1))] * int(images.shape[1])
        return sum(rows)
"""


def network() -> nn.Module:
    torch.random.manual_seed(0)
    names: dict[str, Any] = {}
    exec(FACTORY, names)
    net = names["build"]()
    net.train()(IMAGES)
    return net.eval()


@pytest.fixture(scope="module")
def archive() -> bytes:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network(), (IMAGES,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def rewritten(archive: bytes, change: Callable[[str, bytes], bytes | None], **added: bytes) -> bytes:
    """Return an archive with records changed, left out (None) or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in added.items():
            new.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def in_graph(archive: bytes, change: Callable[[Any], None]) -> bytes:
    def edit(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return rewritten(archive, edit)


def in_weights(archive: bytes, change: Callable[[Any], None]) -> bytes:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        change(next(iter(config["config"].values())))
        return json.dumps(config).encode()

    return rewritten(archive, edit)


class Bomb:
    """Leaves a trace when it is unpickled."""

    went_off = False

    def __reduce__(self) -> tuple[Any, ...]:
        return set_off, ()


def set_off() -> None:
    Bomb.went_off = True


@pytest.fixture(autouse=True)
def _unexploded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bomb, "went_off", False)


def test_an_onnx_file_is_taken_in(tmp_path: Path) -> None:
    model = conv_classifier()
    onnx.save(model, tmp_path / "m.onnx")
    taken = load_trainable(tmp_path / "m.onnx")
    assert (taken.kind, taken.signature.classes) == ("onnx", 10)
    assert taken.source_sha256 == sha256_of((tmp_path / "m.onnx").read_bytes())
    assert difference(model, taken.module, IMAGES.numpy()) < 1e-4


def test_an_exported_program_becomes_layers_with_their_batch_norm(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(archive)
    taken = load_trainable(str(tmp_path / "m.pt2"))
    assert (taken.kind, taken.signature.classes, taken.source_sha256) == ("pt2", 5, sha256_of(archive))
    assert (taken.signature.fixed_batch, taken.signature.shape) == (None, (3, 8, 8))
    kinds = {type(layer).__name__ for layer in taken.module.modules()}
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= kinds
    with torch.no_grad():
        assert torch.allclose(taken.module(IMAGES[:3]), network()(IMAGES[:3]), atol=1e-5)


def test_sample_inputs_of_an_archive_are_never_unpickled(archive: bytes) -> None:
    bomb = io.BytesIO()
    torch.save(((Bomb(),), {}), bomb)
    swap = lambda name, content: bomb.getvalue() if "sample_inputs" in name else content  # noqa: E731
    rigged = rewritten(archive, swap)
    program = read_archive(rigged, "m.pt2")
    assert torch.allclose(program.module()(IMAGES), network()(IMAGES), atol=1e-5)
    assert not Bomb.went_off
    with contextlib.suppress(Exception):
        torch.export.load(io.BytesIO(rigged))  # what the reader protects from
    assert Bomb.went_off


def test_guards_and_notes_of_an_archive_are_left_behind(archive: bytes) -> None:
    rigged = in_graph(archive, lambda graph: graph.update(guards_code=["__import__('os').abort()"]))
    with zipfile.ZipFile(io.BytesIO(safe_archive(rigged, "m.pt2"))) as clean:
        graph = clean.read("archive/models/model.json")
    assert json.loads(graph)["guards_code"] == []
    assert b"stack_trace" not in graph
    assert b"abort" not in graph


def first_node(graph: Any) -> Any:
    return graph["graph_module"]["graph"]["nodes"][0]


def first_symbol(part: Any) -> Any:
    """Return the first object with a symbolic size in it."""
    if isinstance(part, dict):
        if "expr_str" in part:
            return part
        part = list(part.values())
    found = (first_symbol(inner) for inner in part) if isinstance(part, list) else ()
    return next((symbol for symbol in found if symbol is not None), None)


EVIL = "__import__('os').system('true')"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda graph: first_node(graph).update(target="torch.hub.load"), "calls 'torch.hub.load'"),
        (lambda graph: first_node(graph).update(target="torch.ops.aten.add.Tensor.__call__"), "calls"),
        (
            lambda graph: first_node(graph).update(target="_operator.attrgetter"),
            "calls '_operator.attrgetter'",
        ),
        (lambda graph: first_node(graph).update(target="torch.ops.aten.from_file.default"), "calls"),
        (lambda graph: first_node(graph).update(target="torch.ops.aten.save.default"), "calls"),
        (lambda graph: first_symbol(graph).update(expr_str=EVIL), "more than arithmetic"),
        (lambda graph: first_symbol(graph).update(expr_str="s0.__class__"), "more than arithmetic"),
        (lambda graph: first_symbol(graph).update(expr_str="open(s0)"), "more than arithmetic"),
        (lambda graph: first_symbol(graph).update(expr_str="Pow(9, Pow(9, 9))"), "more than arithmetic"),
        (lambda graph: first_symbol(graph).update(expr_str="9**9**9**9"), "more than arithmetic"),
        (
            lambda graph: first_node(graph)["inputs"][0].update(arg={"as_operator": "torch.load"}),
            "as_operator",
        ),
        (lambda graph: first_node(graph)["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}}), "custom"),
    ],
)
def test_a_graph_that_could_run_code_is_refused(
    archive: bytes, change: Callable[[Any], None], reason: str
) -> None:
    with pytest.raises(UnsafeModelError, match=reason):
        safe_archive(in_graph(archive, change), "m.pt2")


def test_tensors_that_are_pickled_or_objects_are_refused(archive: bytes) -> None:
    for change in (
        lambda entry: entry.update(use_pickle=True),
        lambda entry: entry.update(path_name="custom_obj_0"),
        lambda entry: entry.update(path_name="../weight_0"),
    ):
        with pytest.raises(UnsafeModelError, match="as a pickle or an object"):
            safe_archive(in_weights(archive, change), "m.pt2")


def test_compiled_kernels_are_refused(archive: bytes) -> None:
    rigged = rewritten(archive, lambda _, content: content, **{"data/aotinductor/model/m.so": b"\x7fELF"})
    with pytest.raises(UnsafeModelError, match="compiled kernels"):
        safe_archive(rigged, "m.pt2")


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(UnfitModelError, match=r"no torch\.export archive"):
        read_archive(b"not a zip", "m.pt2")


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'"x"', b'{"graph_module": 3}', b"[" * 10**5 + b"]" * 10**5]
)
@pytest.mark.parametrize("record", ["models/model.json", "data/weights/model_weights_config.json"])
def test_an_archive_whose_records_are_of_another_structure_is_refused(
    archive: bytes, record: str, content: bytes
) -> None:
    damaged = rewritten(archive, lambda name, old: content if name == record else old)
    with pytest.raises(UnfitModelError, match="export the model again"):
        read_archive(damaged, "m.pt2")


def test_an_archive_with_a_wrong_checksum_is_refused(archive: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        weight = next(entry for entry in opened.infolist() if entry.filename.endswith("weights/weight_0"))
        place = archive.index(opened.read(weight))
    with pytest.raises(UnfitModelError, match="Bad CRC-32"):
        read_archive(archive[:place] + bytes([archive[place] ^ 255]) + archive[place + 1 :], "m.pt2")


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "pytorch_model.bin", "m.ckpt", "M.PKL"])
def test_pickles_are_refused_unread_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeModelError, match=r"torch\.onnx\.export.*safetensors"):
        load_trainable(tmp_path / name)
    assert not Bomb.went_off


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a factory and its weights, as the current directory."""
    (tmp_path / "factory_of_tests.py").write_text(FACTORY)
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "factory_of_tests", raising=False)
    return tmp_path / "w.safetensors"


def test_a_factory_with_its_weights_is_taken_in_with_dropout(factory: Path) -> None:
    path = list(sys.path)
    taken = load_trainable("factory_of_tests:build", weights=factory, input_shape=(3, 8, 8))
    assert sys.path == path
    assert (taken.kind, taken.origin, taken.signature.classes) == ("factory", None, 5)
    assert taken.source_sha256 == sha256_of(factory.read_bytes())
    assert any(isinstance(layer, nn.Dropout) for layer in taken.module.modules())
    with torch.no_grad():
        assert torch.allclose(taken.module(IMAGES), network()(IMAGES), atol=1e-6)


def test_a_factory_that_cannot_be_traced_is_exported_and_imported(factory: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(FACTORY, names)
    net = names["Counting"]()
    save_file(net.state_dict(), tmp_path / "counting.safetensors")
    taken = load_trainable(
        "factory_of_tests:Counting", weights=tmp_path / "counting.safetensors", input_shape=(3, 8, 8)
    )
    assert [type(layer).__name__ for layer in taken.module.children()] == ["Linear"]
    with torch.no_grad():
        assert torch.allclose(taken.module(IMAGES), net(IMAGES), atol=1e-5)


def test_what_a_factory_lacks_is_said(factory: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"give a \.safetensors file with --weights, got None"):
        load_trainable("factory_of_tests:build")
    with pytest.raises(OptionError, match="give channels, height and width by --input"):
        load_trainable("factory_of_tests:build", weights=factory)
    with pytest.raises(OptionError, match="factory_of_tests:nothing cannot be imported"):
        load_trainable("factory_of_tests:nothing", weights=factory, input_shape=(3, 8, 8))
    with pytest.raises(OptionError, match=r"gives a int, expected a torch\.nn\.Module"):
        load_trainable("factory_of_tests:not_a_network", weights=factory, input_shape=(3, 8, 8))
    with pytest.raises(OptionError, match=r"needing cannot be called: .*takes no arguments"):
        load_trainable("factory_of_tests:needing", weights=factory, input_shape=(3, 8, 8))
    with pytest.raises(ModelError, match=r"build does not run on images of 1 x 8 x 8: .* by --input"):
        load_trainable("factory_of_tests:build", weights=factory, input_shape=(1, 8, 8))
    with pytest.raises(MissingFileError, match=r"gone\.safetensors is not a file"):
        load_trainable("factory_of_tests:build", weights=Path("gone.safetensors"), input_shape=(3, 8, 8))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="save the weights from this very network"):
        load_trainable(
            "factory_of_tests:build", weights=tmp_path / "other.safetensors", input_shape=(3, 8, 8)
        )
    (tmp_path / "bad.safetensors").write_bytes(np.arange(9).tobytes())
    with pytest.raises(ModelError, match="save the weights from this very network"):
        load_trainable("factory_of_tests:build", weights=tmp_path / "bad.safetensors", input_shape=(3, 8, 8))


@pytest.mark.parametrize("spec", ["model", "model.keras", "a b:c", "module:"])
def test_a_specification_of_no_form_is_refused(spec: str) -> None:
    with pytest.raises(OptionError, match=r"expected a \.onnx or \.pt2 file, or package\.module:factory"):
        load_trainable(spec)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.pt2"):
        with pytest.raises(MissingFileError, match=name):
            load_trainable(tmp_path / name)
