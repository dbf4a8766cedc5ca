"""A model with two boundaries, served: what becomes of inputs beyond none, one and both, and who is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from calibration.calibrate import calibrate
from calibration.checking import check_images
from calibration.progress import Progress
from guard.artifact.detector import boundaries_of, score_of
from guard.cli import main
from guard.control.version_info import version_info
from guard.detection.base import Decision
from guard.detection.threshold import Policy, Tier, Verdict, tier_of, verdict_of
from guard.quarantine import read_contents
from guard.rpc.pb import open_inference_pb2 as pb
from guard.runtime.loader import RuntimeOptions, load_model
from tests.calibration.calibration_subjects import options_for, pixels
from tests.serving import infer_request, serving
from tests.tiny_models import linear_classifier

CLEAN, DOUBTFUL, SUSPICIOUS = Decision.CLEAN, Decision.DOUBTFUL, Decision.SUSPICIOUS
REQUESTS = (
    (CLEAN,),
    (DOUBTFUL,),
    (SUSPICIOUS,),
    (CLEAN, DOUBTFUL),
    (CLEAN, DOUBTFUL, SUSPICIOUS),
    (SUSPICIOUS, DOUBTFUL, CLEAN, SUSPICIOUS),
)
SUFFIX = {"strip": "bits, below the block boundary", "fused": "above the block boundary"}


class Model:
    """An artifact with two boundaries in a repository of its own, and images of every kind."""

    def __init__(self, folder: Path, detector: str) -> None:
        subject = linear_classifier(gain=0.5)
        rounds = (2, 2, 2, 1, 1)
        options = options_for(folder, subject, detector=detector, frr=0.3, block_frr=0.1, rounds=rounds)
        images = pixels(900)
        np.savez(options.data, images=images)
        self.artifact = calibrate(options).artifact
        self.repository = self.artifact.parents[1]
        loaded = load_model("tiny", self.artifact, RuntimeOptions(device="cpu", threads=1))
        self.info, self.profile = version_info(loaded), loaded.profile
        rows = (images.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
        with Progress(len(rows), "images", quiet=True) as progress:
            found = check_images(loaded.classifier, loaded.detector, rows, lambda some: some, 256, progress)
        loaded.close()
        self.detector = detector
        self.rows = {one: rows[[each is one for each in found.decisions]] for one in REQUESTS[-1]}

    def request(self, decisions: tuple[Decision, ...]) -> pb.ModelInferRequest:
        images = np.stack([self.rows[one][place] for place, one in enumerate(decisions)])
        request = infer_request(images)
        for name in ("guard_verdict", "guard_score", "guard_p_value", "guard_passes", "logits"):
            request.outputs.add(name=name)
        return request


@pytest.fixture(scope="module", params=["strip", "fused"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("entropy_picture", "score_picture"):
            patch.setattr(f"calibration.calibrate.{picture}", lambda *_: b"a picture")
        return Model(tmp_path_factory.mktemp(request.param), request.param)


def outputs_of(answer: pb.ModelInferResponse) -> dict[str, Any]:
    dtypes = {"FP32": "<f4", "INT32": "<i4"}
    found: dict[str, Any] = {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype in dtypes:
            found[output.name] = np.frombuffer(raw, dtypes[output.datatype]).tolist()
    return found


def records(path: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [line for line in lines if line["kind"] == "verdict"]


@pytest.mark.parametrize("policy", Policy)
async def test_every_kind_of_input_under_every_policy(model: Model, tmp_path: Path, policy: Policy) -> None:
    kept = {"audit_log": tmp_path / "audit.jsonl", "quarantine_dir": tmp_path / "quarantine"}
    refused = 0
    async with serving(model.repository, policy=policy.value, full_check_share=0, **kept) as client:
        for decisions in REQUESTS:
            verdicts = [verdict_of(one, policy) for one in decisions]
            if Verdict.REJECT in verdicts:
                refused += 1
                code, words = await client.refusal(model.request(decisions))
                assert code is grpc.StatusCode.PERMISSION_DENIED
                rows = [row for row, verdict in enumerate(verdicts) if verdict is Verdict.REJECT]
                assert f"{', '.join(map(str, rows))} of {len(decisions)} look" in words
                block = boundaries_of(model.profile)[-1][1]
                assert SUFFIX[model.detector] in words
                assert f"of model 'tiny', {abs(score_of(block)):.4f})" in words
                continue
            answer = await client.infer(model.request(decisions))
            told = answer.parameters["guard_verdict"].string_param
            if policy is Policy.MONITOR:
                assert told == "pending"
            else:
                assert told == (Verdict.FLAG.value if Verdict.FLAG in verdicts else Verdict.ACCEPT.value)
                found = outputs_of(answer)
                assert len(found["guard_score"]) == len(decisions)
    expected = [one for decisions in REQUESTS for one in decisions]
    counts = Counter(verdict_of(one, policy).value for one in expected)
    assert client.counted("guard_inputs_total", "verdict") == {(name,): n for name, n in counts.items()}
    assert refused == (3 if policy is Policy.ENFORCE else 0)

    wanted = Counter(
        (verdict_of(one, policy).value, tier.value) for one in expected if (tier := tier_of(one)) is not None
    )
    assert Counter((line["verdict"], line["tier"]) for line in records(kept["audit_log"])) == wanted
    items = read_contents(kept["quarantine_dir"]).items
    assert sum(item.count for item in items) == sum(wanted.values())
    assert {(item.verdict.value, item.tier and item.tier.value) for item in items} == set(wanted)


async def test_what_an_answer_says_of_scores_and_p_values_is_so(model: Model) -> None:
    """Of rows accepted early and of rows seen through, against the calibration's own scores."""
    decisions = (CLEAN,) * 12 + (DOUBTFUL, SUSPICIOUS)
    async with serving(model.repository, policy="flag", full_check_share=0) as client:
        found = outputs_of(await client.infer(model.request(decisions)))
    scores, p_values, passes = (np.array(found[f"guard_{name}"]) for name in ("score", "p_value", "passes"))
    n = model.profile.check.n_overlays
    flag, block = (score_of(boundary) for _, boundary in boundaries_of(model.profile))
    fused = model.profile.fused
    clean = np.array(fused.clean_scores if fused else model.profile.calibration.clean_entropies_bits)
    clean = clean if fused else -clean
    whole = passes == n
    early = ~whole & (np.arange(len(passes)) < 12)
    assert early.any()
    for score, p in zip(scores[whole], p_values[whole], strict=True):
        assert p == pytest.approx((1 + (clean >= score).sum()) / (len(clean) + 1), abs=2 / len(clean))
    if fused is not None:
        assert (p_values[early] == 1.0).all()
    else:  # an upper bound of the score, a lower bound of the p-value: both are still those of clean inputs
        assert (scores[early] <= flag).all()
        assert (p_values[early] > model.profile.boundary.rank / (len(clean) + 1) / 2).all()
    assert flag < scores[12] <= block
    assert scores[13] > block


def test_status_and_verify_tell_both_boundaries(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    (first, flag), (second, block) = boundaries_of(model.profile)
    assert (first, second) == (Tier.FLAG, Tier.BLOCK)
    assert (model.info.boundary, model.info.block_boundary) == (score_of(flag), score_of(block))
    assert (model.info.certified_frr, model.info.block_certified_frr) == (
        flag.certified_frr,
        block.certified_frr,
    )
    assert main(["verify", str(model.artifact)]) == 0
    told = capsys.readouterr().out.splitlines()
    for name, boundary in (("boundary", flag), ("refused", block)):
        [line] = [line for line in told if line.startswith(f"  {name}")]
        assert f"{abs(score_of(boundary)):.4f}" in line
        assert f"{boundary.certified_frr:.4%} certified" in line


def test_the_report_of_the_calibration_holds_both(model: Model) -> None:
    report = json.loads((model.artifact / "report.json").read_text())
    record: Callable[[Any], Any] = lambda boundary: boundary.model_dump(mode="json")  # noqa: E731
    assert (report["boundary"], report["block"]) == (
        record(model.profile.boundary),
        record(model.profile.block),
    )
    if model.profile.fused is not None:
        assert report["fused"]["boundary"] == record(model.profile.fused.boundary)
        assert report["fused"]["block"] == record(model.profile.fused.block)
