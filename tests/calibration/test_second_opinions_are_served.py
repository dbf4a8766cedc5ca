"""Second opinions are asked of a running guard's inputs after they are judged, and change nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.calibrate import calibrate
from calibration.capabilities.base import Bench, Copies
from calibration.capabilities.ibd_psc import norm_layers
from calibration.capabilities.joined import joined
from guard.artifact import Artifact, read_artifact
from guard.artifact.manifest import COPIES_NAME, OPINIONS_NAME
from guard.artifact.opinions import COPIES_OUTPUT, opinions_bytes
from guard.cli import main
from guard.dataplane import second_opinions
from guard.detection.capabilities.ibd_psc import IbdPsc
from guard.detection.capabilities.opinion import OPINIONS, opinion_p_values
from guard.detection.capabilities.scale_up import ScaleUp
from guard.detection.capabilities.teco_lite import TecoLite
from guard.detection.entropy import entropy_of_probabilities
from guard.errors import CheckFailedError, ProfileError, QueueFullError
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.opinions import NOT_WANTED
from guard.upstream.model_server import UpstreamServer
from tests.calibration.capability_models import SINK, clean_images, residual_net
from tests.calibration.test_second_opinions import asked as options_asked
from tests.calibration.test_second_opinions import replaced, stored
from tests.guard.upstream_house import in_front_of
from tests.model_server import ModelServer
from tests.serving import PATIENCE_S, Client, infer_request, serving

COUNTED = "guard_second_opinions_total"
RUNTIME = RuntimeOptions(device="cpu", threads=1, second_opinions=True)
FRR = 0.05


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")
        report = calibrate(options_asked(tmp_path_factory.mktemp("served"), residual_net(3), frr=FRR))
    return report.artifact.parent.parent


@pytest.fixture(scope="module")
def artifact(repository: Path) -> Artifact:
    return read_artifact(repository / "tiny" / "1")


@pytest.fixture(scope="module")
def images(artifact: Artifact) -> np.ndarray:
    """Images that nothing was calibrated on, as the model takes them: 6 beyond the boundary, 54 within."""
    profile = artifact.profile
    many = (stored(clean_images(800, seed=5)).astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    bench = Bench(artifact.model, profile.input, profile.output, None, artifact.overlays, "cpu", 1)
    with bench.asked() as asked:
        blends = [entropy_of_probabilities(asked.model(many + overlay)) for overlay in artifact.overlays]
    suspicious = np.mean(blends, axis=0) < profile.boundary.boundary_bits
    return np.concatenate([many[suspicious][:6], many[~suspicious][:54]])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a scrape is not told of counts either
            await asyncio.sleep(0.005)


def verdicts_of(answer: pb.ModelInferResponse) -> list[str]:
    [place] = [at for at, output in enumerate(answer.outputs) if output.name == "guard_verdict"]
    raw, words, start = answer.raw_output_contents[place], [], 0
    while start < len(raw):
        size = int.from_bytes(raw[start : start + 4], "little")
        words.append(raw[start + 4 : start + 4 + size].decode())
        start += 4 + size
    return words


def request_of(images: np.ndarray) -> pb.ModelInferRequest:
    request = infer_request(images, id="an id")
    for name in ("logits", "guard_verdict", "guard_p_value"):
        request.outputs.add(name=name)
    return request


def heard(client: Client, verdict: str) -> dict[str, float]:
    """Return how many inputs of a verdict each capability was asked about, whatever came of it."""
    found: dict[str, float] = {}
    for (name, _), count in client.counted(COUNTED, "capability", "outcome", verdict=verdict).items():
        found[name] = found.get(name, 0) + count
    return found


def total(client: Client) -> float:
    every = client.counted(COUNTED, "capability", "verdict", "outcome")
    return sum(every.values())


def expected(artifact: Artifact, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the p-values that each gives, by the code that calibrates."""
    assert artifact.opinions is not None
    assert artifact.opinions.copies is not None
    profile = artifact.profile
    bench = Bench(artifact.model, profile.input, profile.output, None, images, "cpu", 1)
    with bench.asked(Copies(artifact.opinions.copies, COPIES_OUTPUT, 5)) as asked:
        classes = asked.model(images).argmax(axis=1)
        return {
            one.name: opinion_p_values(one.opinion.scores(images, classes, asked), one.clean)
            for one in artifact.opinions.each
        }


def told(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line.get("kind") == "second_opinion"]


async def test_flagged_inputs_are_asked_about_and_nothing_changes(
    repository: Path, artifact: Artifact, images: np.ndarray, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    async with serving(repository, policy="flag", second_opinions="off") as client:
        without = await client.infer(request_of(images))
    async with serving(repository, policy="flag", audit_log=log) as client:
        answer = await client.infer(request_of(images))
        flagged = [row for row, verdict in enumerate(verdicts_of(answer)) if verdict == "flag"]
        assert flagged == [0, 1, 2, 3, 4, 5]
        await until(lambda: total(client) == 3 * len(flagged))
        assert heard(client, "flag") == dict.fromkeys(OPINIONS, len(flagged))
        outcomes = client.counted(COUNTED, "capability", "outcome", verdict="flag")
        assert client.counted("guard_inputs_total", "verdict") == {
            ("accept",): 60 - len(flagged),
            ("flag",): len(flagged),
        }
        assert client.counted("guard_second_opinion_p_value_count") == {}
    assert answer.raw_output_contents == without.raw_output_contents
    by_hand = expected(artifact, images[flagged])
    records = told(log)
    assert [(one["request_id"], one["row"], one["verdict"]) for one in records] == [
        ("an id", row, "flag") for row in flagged
    ]
    for place, record in enumerate(records):
        for name in OPINIONS:
            assert record["second_opinions"][name] == pytest.approx(by_hand[name][place], abs=0.011)
    agreeing = {name: np.sum(p <= FRR) for name, p in by_hand.items()}
    assert {name: outcomes.get((name, "agrees"), 0) for name in OPINIONS} == agreeing


async def test_of_accepted_inputs_a_share_is_asked_about_where_that_is_wanted(
    repository: Path, artifact: Artifact, images: np.ndarray
) -> None:
    own = {"tiny": {"second_opinions": "sampled", "full_check_share": 1.0}}
    async with serving(repository, policy="flag", models=own) as client:
        answer = await client.infer(request_of(images))
        accepted = [row for row, verdict in enumerate(verdicts_of(answer)) if verdict == "accept"]
        await until(lambda: total(client) == 3 * len(images))
        assert heard(client, "accept") == dict.fromkeys(OPINIONS, len(accepted))
        counted = client.counted("guard_second_opinion_p_value_count", "capability")
        assert counted == {(name,): len(accepted) for name in OPINIONS}
        sums = client.counted("guard_second_opinion_p_value_sum", "capability")
    for name, p_values in expected(artifact, images[accepted]).items():
        assert sums[name,] == pytest.approx(p_values.sum(), abs=0.5)
        assert 0.3 < sums[name,] / len(accepted) < 0.7


@pytest.mark.parametrize("silent", [True, False])
async def test_accepted_inputs_are_written_down_where_everybody_disagrees_and_only_there(
    repository: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    def disagree(_: object, rows: np.ndarray, *__: object) -> np.ndarray:
        return np.full(len(rows), 1e9)

    def fail(*_: object) -> None:
        raise RuntimeError("out of paint")

    log = tmp_path / "audit.jsonl"
    own = {"tiny": {"second_opinions": "sampled", "full_check_share": 1.0}}
    async with serving(repository, policy="flag", models=own, audit_log=log) as client:
        for capability in (ScaleUp, IbdPsc, TecoLite):
            monkeypatch.setattr(capability, "scores", disagree)
        if silent:
            monkeypatch.setattr(IbdPsc, "scores", fail)
        accepted = verdicts_of(await client.infer(request_of(images))).count("accept")
        await until(lambda: total(client) == 3 * len(images))
    written = [one for one in told(log) if one["verdict"] == "accept"]
    assert len(written) == (0 if silent else accepted)


async def test_who_asks_has_no_lower_priority_than_those_who_wait_for_the_interpreter(
    repository: Path, images: np.ndarray
) -> None:
    async with serving(repository, policy="flag") as client:
        await client.infer(request_of(images))
        [thread] = [one for one in threading.enumerate() if one.name == "second-opinions-tiny"]
        await until(lambda: total(client) > 0)
        assert thread.native_id is not None
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == own


async def test_refused_inputs_are_asked_about_too(
    repository: Path, artifact: Artifact, images: np.ndarray
) -> None:
    async with serving(repository, policy="enforce") as client:
        await client.refusal(infer_request(images))
        await until(lambda: total(client) > 0)
        rejected = client.counted("guard_inputs_total", "verdict")["reject",]
        await until(lambda: total(client) == 3 * rejected)
        assert heard(client, "reject") == dict.fromkeys(OPINIONS, rejected)


async def test_where_they_are_off_nobody_is_asked_and_status_says_why(
    repository: Path, images: np.ndarray
) -> None:
    async with serving(repository, policy="flag", second_opinions="off", full_check_share=1.0) as client:
        await client.infer(infer_request(images))
        [status] = await client.server.control.status()
        assert status.current is not None
        assert {one.name: one.why_off for one in status.current.second_opinions} == dict.fromkeys(
            OPINIONS, NOT_WANTED
        )
        assert total(client) == 0


async def test_what_there_is_no_room_for_is_dropped_and_counted(
    repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_opinions, "MOST_WAITING", 2)
    async with serving(repository, policy="flag") as client:
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        await until(lambda: total(client) == 3 * flagged)
        dropped = client.counted(COUNTED, "capability", outcome="dropped")
        assert dropped == {(name,): flagged - 2 for name in OPINIONS}


async def test_where_there_may_be_no_more_threads_requests_are_answered_all_the_same(
    repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("second-opinions"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with serving(repository, policy="flag") as client:
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        assert client.counted(COUNTED, "capability", "outcome") == {
            (name, "dropped"): flagged for name in OPINIONS
        }


async def test_a_short_line_is_asked_in_small_portions(repository: Path, images: np.ndarray) -> None:
    short = {"max_queue_rows": 8, "max_request_rows": 8, "full_check_share": 0.0}
    async with serving(repository, policy="flag", **short) as client:
        flagged = verdicts_of(await client.infer(request_of(images[:8]))).count("flag")
        await until(lambda: total(client) == 3 * flagged)
        assert client.counted(COUNTED, "outcome", outcome="dropped") == {}


async def test_one_that_fails_is_counted_and_the_others_are_heard(
    repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of paint")

    async with serving(repository, policy="flag") as client:
        monkeypatch.setattr(ScaleUp, "scores", fail)
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        await until(lambda: total(client) == 3 * flagged)
        outcomes = client.counted(COUNTED, "capability", "outcome")
        assert outcomes["scale_up", "failed"] == flagged
        assert {name for name, outcome in outcomes if outcome == "failed"} == {"scale_up"}
        again = await client.infer(request_of(images))
        assert verdicts_of(again).count("flag") == flagged


@pytest.mark.parametrize(
    ("error", "outcome"), [(CheckFailedError("no"), "failed"), (QueueFullError("full"), "dropped")]
)
async def test_what_the_line_does_not_answer_is_counted_by_why(
    repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(second_opinions, "_in_background", refuse)
    async with serving(repository, policy="flag") as client:
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        await until(lambda: total(client) == 3 * flagged)
        assert client.counted(COUNTED, "capability", "outcome") == {
            (name, outcome): flagged for name in OPINIONS
        }


async def test_a_version_that_was_swapped_out_is_asked_no_more(
    repository: Path, images: np.ndarray, tmp_path: Path
) -> None:
    both = shutil.copytree(repository, tmp_path / "models")
    shutil.copytree(both / "tiny" / "1", both / "tiny" / "2")
    async with serving(both, policy="flag") as client:
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        await client.server.control.swap("tiny", "1")
        await until(lambda: total(client) == 3 * flagged)  # heard or dropped, and all counted
        await client.infer(request_of(images))
        await until(lambda: total(client) == 6 * flagged)
        assert client.counted(COUNTED, "outcome", outcome="failed") == {}


def questions(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], asyncio.Event]:
    """Return whom is asked from now on, by version, and what they wait for before they answer."""
    asked: list[str] = []
    go_on = asyncio.Event()

    async def answer(model: LoadedModel, rows: np.ndarray) -> np.ndarray:
        asked.append(model.version)
        await go_on.wait()
        return np.zeros((len(rows), model.profile.output.classes), np.float32)

    monkeypatch.setattr(second_opinions, "_in_background", answer)
    return asked, go_on


async def test_nothing_more_is_asked_while_a_model_server_is_given_another_model(
    repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = questions(monkeypatch)
    own = {"upstream_check": "upstream"}
    async with (
        ModelServer(residual_net(3)) as upstream,
        in_front_of(upstream, repository, own=own, policy="flag") as client,
    ):
        await client.infer(infer_request(images))
        flagged = client.counted("guard_inputs_total", "verdict")["flag",]
        await until(lambda: asked == ["1"])
        [served] = client.server._keeper.models.values()
        assert isinstance(served.upstream, UpstreamServer)
        served.upstream._turnstile.closed = True  # as it is while those under way are waited for
        go_on.set()
        await until(lambda: total(client) == 2 * flagged)
        served.upstream._turnstile.closed = False
        assert set(client.counted(COUNTED, "outcome")) == {("dropped",)}
    assert asked == ["1"]


async def test_nothing_more_is_asked_of_a_version_once_another_serves(
    repository: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = shutil.copytree(repository, tmp_path / "models")
    shutil.copytree(both / "tiny" / "1", both / "tiny" / "2")
    asked, swapped = questions(monkeypatch)
    async with serving(both, policy="flag") as client:
        flagged = verdicts_of(await client.infer(request_of(images))).count("flag")
        await until(lambda: asked == ["2"])
        await client.server.control.swap("tiny", "1")
        swapped.set()
        await until(lambda: total(client) == 3 * flagged)
        assert set(client.counted(COUNTED, "outcome")) == {("dropped",)}
    assert asked == ["2"]


@pytest.mark.parametrize("check", ["local", "upstream"])
async def test_in_front_of_a_model_server_what_asks_amplified_copies_is_off_where_it_predicts(
    repository: Path, images: np.ndarray, check: str
) -> None:
    own = {"upstream_check": check}
    async with (
        ModelServer(residual_net(3)) as upstream,
        in_front_of(upstream, repository, own=own, policy="flag") as client,
    ):
        [status] = await client.server.control.status()
        assert status.current is not None
        off = {one.name: one.why_off for one in status.current.second_opinions if one.why_off}
        assert list(off) == (["ibd_psc"] if check == "upstream" else [])
        assert all("it has no amplified copies of the model" in why for why in off.values())
        answered = await client.infer(infer_request(images))
        assert answered.model_name == "tiny"
        flagged = client.counted("guard_inputs_total", "verdict")["flag",]
        await until(lambda: total(client) == (3 - len(off)) * flagged)
        assert set(heard(client, "flag")) == {*OPINIONS} - {*off}


def test_one_that_scores_the_stored_images_otherwise_is_off_and_the_model_loads(
    repository: Path, artifact: Artifact, tmp_path: Path
) -> None:
    assert artifact.opinions is not None
    other = shutil.copytree(repository / "tiny" / "1", tmp_path / "tiny" / "1")
    moved = [
        replace(one, probe=one.probe + one.clean.std()) if one.name == "teco_lite" else one
        for one in artifact.opinions.each
    ]
    model = load_model("tiny", replaced(other, OPINIONS_NAME, opinions_bytes(moved)), RUNTIME)
    model.close()
    assert [one.name for one in model.opinions.each] == ["scale_up", "ibd_psc"]
    assert "off those at calibration by up to" in model.opinions.off["teco_lite"]


def test_copies_that_are_not_those_of_the_model_are_refused(repository: Path, tmp_path: Path) -> None:
    other = shutil.copytree(repository / "tiny" / "1", tmp_path / "tiny" / "1")
    model = residual_net(3)
    scale, _ = norm_layers(model)[-1]
    weight = next(one for one in model.graph.initializer if one.name == scale)
    three = joined(model, SINK, [{scale: onnx.numpy_helper.to_array(weight)}] * 3)
    with pytest.raises(ProfileError, match=r"gives .*\[12\].*, expected .* with 5 times 4 values;"):
        load_model("tiny", replaced(other, COPIES_NAME, three.model.SerializeToString()), RUNTIME)


def test_copies_that_take_something_else_than_the_model_are_refused(
    repository: Path, artifact: Artifact, tmp_path: Path
) -> None:
    other = shutil.copytree(repository / "tiny" / "1", tmp_path / "tiny" / "1")
    assert artifact.opinions is not None
    assert artifact.opinions.copies is not None
    changed = onnx.ModelProto()
    changed.CopyFrom(artifact.opinions.copies)
    [source] = changed.graph.input
    for node in changed.graph.node:
        renamed = ["others" if name == source.name else name for name in node.input]
        del node.input[:]
        node.input.extend(renamed)
    source.name = "others"
    with pytest.raises(ProfileError, match=r"amplified.onnx is .*'others'.*, expected .*'images'"):
        load_model("tiny", replaced(other, COPIES_NAME, changed.SerializeToString()), RUNTIME)


def test_copies_that_fail_on_the_stored_images_are_off_and_the_model_loads(
    repository: Path, artifact: Artifact, tmp_path: Path
) -> None:
    other = shutil.copytree(repository / "tiny" / "1", tmp_path / "tiny" / "1")
    assert artifact.opinions is not None
    assert artifact.opinions.copies is not None
    assert artifact.probe is not None
    failing = onnx.ModelProto()
    failing.CopyFrom(artifact.opinions.copies)
    graph, helper = failing.graph, onnx.helper
    [last] = [node for node in graph.node if COPIES_OUTPUT in node.output]
    last.output[0] = "of copies"
    count = np.array([len(artifact.probe.images)])
    for name, value in (("count", count), ("table", np.zeros(1, np.float32)), ("first", np.array([0]))):
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    graph.node.extend(
        [
            helper.make_node("Shape", ["of copies"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["rows"]),
            helper.make_node("Equal", ["rows", "count"], ["as many"]),
            helper.make_node("Cast", ["as many"], ["place"], to=onnx.TensorProto.INT64),
            helper.make_node("Gather", ["table", "place"], ["zero"]),  # there is no second
            helper.make_node("Add", ["of copies", "zero"], [COPIES_OUTPUT]),
        ]
    )
    model = load_model("tiny", replaced(other, COPIES_NAME, failing.SerializeToString()), RUNTIME)
    model.close()
    assert [one.name for one in model.opinions.each] == ["scale_up", "teco_lite"]
    assert "it fails on the stored images" in model.opinions.off["ibd_psc"]


def test_verifying_says_who_is_asked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(repository / "tiny" / "1")]) == 0
    assert "  asks also scale_up\n            ibd_psc\n            teco_lite\n" in capsys.readouterr().out
