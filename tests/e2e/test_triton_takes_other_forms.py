"""The real Triton with an ensemble that decodes images, and a model of half precision, behind the guard."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from guard.artifact import Preprocessing
from tests.artifacts import write_tiny_artifact
from tests.e2e.triton_process import MODEL, Triton, environment, write_model
from tests.guard.image_files import encoded, noise
from tests.reference_check import linear_logits
from tests.serving import serving
from tests.tiny_models import linear_classifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

CALLS = Path(__file__).with_name("triton_forms_calls.py")
PATIENCE_S = 90.0
PIXELS = np.stack([noise(seed=seed) for seed in range(3)])
IMAGES = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255

ENSEMBLE = """
name: "pictures"
platform: "ensemble"
max_batch_size: 4
input [ { name: "file" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] } ]
ensemble_scheduling { step [
  { model_name: "decode" model_version: -1
    input_map { key: "file" value: "file" } output_map { key: "images" value: "decoded" } },
  { model_name: "signs" model_version: -1
    input_map { key: "images" value: "decoded" } output_map { key: "logits" value: "logits" } }
] }
"""

DECODE = """
name: "decode"
backend: "python"
max_batch_size: 4
input [ { name: "file" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "images" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

DECODE_MODEL = '''
import struct
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils


def paeth(a, b, c):
    distances = [abs(b - c), abs(a - c), abs(a + b - 2 * c)]
    return (a, b, c)[distances.index(min(distances))]


def decoded(file):
    """A PNG of 8-bit RGB, by the letter of its specification: there is no decoder in this environment."""
    at, packed = 8, b""
    while at < len(file):
        length, name = struct.unpack(">I4s", file[at:at + 8])
        data = file[at + 8:at + 8 + length]
        if name == b"IHDR":
            width, height = struct.unpack(">II", data[:8])
        packed += data if name == b"IDAT" else b""
        at += 12 + length
    raw, stride = zlib.decompress(packed), 3 * width
    rows = [[0] * (stride + 3)]
    for y in range(height):
        kind, line = raw[y * (stride + 1)], raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)]
        row = [0, 0, 0]
        for x, value in enumerate(line):
            a, b, c = row[x], rows[-1][x + 3], rows[-1][x]
            row.append((value + (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]) % 256)
        rows.append(row)
    return np.array([row[3:] for row in rows[1:]], np.uint8).reshape(height, width, 3)


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        files = pb_utils.get_input_tensor_by_name(request, "file").as_numpy().ravel()
        images = np.stack([decoded(file) for file in files]).transpose(0, 3, 1, 2).astype(np.float32) / 255
        return pb_utils.InferenceResponse([pb_utils.Tensor("images", images)])
'''

HALF = """
name: "halves"
backend: "python"
max_batch_size: 4
input [ { name: "images" data_type: TYPE_FP16 dims: [ 3, 8, 8 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
HALF_MODEL = MODEL.replace('"images": images}', '"images": images.astype("float32")}')


def write(repository: Path, name: str, config: str, model: str = "") -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if model:
        (version / "model.py").write_text(model)
    return version


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    server = Triton(await asyncio.to_thread(environment), folder, "pictures", ("halves",))
    write_model(server.repository, "signs", linear_classifier(), max_batch_size=4)
    write(server.repository, "decode", DECODE, DECODE_MODEL)
    write(server.repository, "pictures", ENSEMBLE)
    half = write(server.repository, "halves", HALF, HALF_MODEL)
    (half / "model.onnx").write_bytes(linear_classifier().SerializeToString())
    files = [encoded(pixels) for pixels in PIXELS]
    longest = max(map(len, files))
    np.savez(
        folder / "arrays.npz",
        files=np.stack([np.frombuffer(file.ljust(longest, b"\0"), np.uint8) for file in files]),
        lengths=[len(file) for file in files],
        half=IMAGES.astype(np.float16),
    )
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


async def called(triton: Triton, address: str) -> dict[str, Any]:
    """Run the client beside this process and return what it saw."""
    process = await asyncio.create_subprocess_exec(
        triton.python,
        CALLS,
        address,
        str(triton.folder / "arrays.npz"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    seen: dict[str, Any] = json.loads(output)
    return seen


async def test_tritonclient_gets_the_same_through_the_guard(triton: Triton, tmp_path: Path) -> None:
    record = Preprocessing(scale=1 / 255, eight_bit=True)
    for name in ("pictures", "halves"):
        write_tiny_artifact(tmp_path, name, boundary_bits=-1.0, probed=True, preprocessing=record)
    models = {
        "pictures": {"upstream": triton.address, "encoded_images": {"input": "file"}},
        "halves": {"upstream": triton.address},
    }

    async with serving(tmp_path, models=models, upstream_wait_s=30.0) as client:
        through = await called(triton, f"127.0.0.1:{client.server.port}")
    direct = await called(triton, triton.address)

    assert through == direct
    assert through["pictures"]["metadata"][0]["datatype"] == "BYTES"
    assert through["halves"]["metadata"][0]["datatype"] == "FP16"
    np.testing.assert_allclose(through["pictures"]["all"], linear_logits(IMAGES), atol=1e-4)
    np.testing.assert_allclose(through["halves"]["all"], linear_logits(IMAGES), atol=2e-2)


async def test_the_guard_alone_answers_as_triton_does(triton: Triton, tmp_path: Path) -> None:
    record = Preprocessing(scale=1 / 255, eight_bit=True)
    write_tiny_artifact(tmp_path, "signs", boundary_bits=-1.0, preprocessing=record)
    direct = await called(triton, triton.address)

    async with serving(tmp_path) as client:
        alone = await alone_called(client.server.port, triton)

    assert [words.split(":")[1:] for words in alone] == [
        words.split(":")[1:] for words in direct["pictures"]["classes"]
    ]
    assert all(
        len(words.split(":")[0].split(".")[1]) == 6 for words in (*alone, *direct["pictures"]["classes"])
    )
    ours, theirs = (
        [float(words.split(":")[0]) for words in one] for one in (alone, direct["pictures"]["classes"])
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


async def alone_called(port: int, triton: Triton) -> list[str]:
    """Return the three highest classes of each file, asked of a model that runs in the guard."""
    program = (
        "import sys, numpy as np, tritonclient.grpc as t, json\n"
        "a = np.load(sys.argv[2]); c = t.InferenceServerClient(sys.argv[1])\n"
        "f = np.array([x.tobytes()[:n] for x, n in zip(a['files'], a['lengths'])], dtype=np.object_)\n"
        "i = t.InferInput('images', [len(f)], 'BYTES'); i.set_data_from_numpy(f)\n"
        "r = c.infer('signs', [i], outputs=[t.InferRequestedOutput('logits', class_count=3)])\n"
        "print(json.dumps([v.decode() for v in r.as_numpy('logits').ravel()]))\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(triton.python, "-c", program, f"127.0.0.1:{port}", str(triton.folder / "arrays.npz")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    words: list[str] = json.loads(output)
    return words
