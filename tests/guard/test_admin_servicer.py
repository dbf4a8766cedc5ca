"""guard.admin.v1 behind a real gRPC server: every method, every way it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard import errors
from guard.control.api import CanaryStatus, Control, Failure, ModelStatus, Step, SwapReport, VersionInfo
from guard.rpc.admin_codec import (
    checked_digest,
    checked_share,
    checked_version,
    decode_canary,
    decode_report,
    decode_statuses,
    encode_canary,
    encode_report,
    encode_statuses,
)
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.status import STATUS_OF
from tests.guard.admin_house import PATIENCE_S, House, administering, refusal, stub_at
from tests.guard.fake_control import FakeControl, version_info

SERVICE = pb.DESCRIPTOR.services_by_name["GuardAdmin"]
RAISED = [cls for cls in STATUS_OF if cls is not errors.InputRejectedError]
REQUESTS = {
    "Status": pb.StatusRequest(model="tiny"),
    "Swap": pb.SwapRequest(model="tiny", version="2"),
    "Rollback": pb.RollbackRequest(model="tiny"),
    "StartCanary": pb.StartCanaryRequest(model="tiny", version="2", share=0.1),
    "Promote": pb.PromoteRequest(model="tiny"),
    "StopCanary": pb.StopCanaryRequest(model="tiny"),
}


@dataclass
class Asked:
    """A server to ask, and a stub that does."""

    house: House
    stub: Any

    @property
    def control(self) -> FakeControl:
        return self.house.control


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Asked]:
    async with (
        administering(socket=tmp_path / "admin.sock") as house,
        stub_at(house.address) as stub,
    ):
        yield Asked(house, stub)


def test_the_fake_is_a_control_room() -> None:
    assert isinstance(FakeControl(), Control)


def test_every_method_of_the_service_is_tested_here() -> None:
    assert {method.name for method in SERVICE.methods} == set(REQUESTS)


# What each method does


async def test_status_tells_all_that_is_known(admin: Asked) -> None:
    admin.control.tiny = replace(
        admin.control.tiny,
        previous=("2", "1"),
        canary=CanaryStatus(version_info("2"), 0.25, 5.0, False, "stopped", {"requests": 3.0}),
        failures=(Failure("3", 7.0, "no numbers"), Failure("2", 8.0, "torn")),
    )

    for model in ("", "tiny"):
        answer = await admin.stub.Status(pb.StatusRequest(model=model))
        assert decode_statuses(answer) == (admin.control.tiny,)


async def test_a_model_that_is_being_unloaded_has_no_current_version(admin: Asked) -> None:
    admin.control.tiny = replace(admin.control.tiny, current=None)

    [status] = decode_statuses(await admin.stub.Status(pb.StatusRequest()))

    assert (status.current, status.canary, status.failures) == (None, None, ())


async def test_swap_serves_the_version_named_and_says_what_changed(admin: Asked) -> None:
    asked = pb.SwapRequest(model="tiny", version="2", digest=version_info("2").digest.upper())

    report = decode_report(await admin.stub.Swap(asked))
    again = decode_report(await admin.stub.Swap(asked))

    assert report == SwapReport("tiny", version_info("1"), version_info("2"), 0.5, True)
    assert (again.new.version, again.changed) == ("2", False)
    assert admin.control.asked[0] == ("swap", "tiny", "2", version_info("2").digest, "unix")
    assert admin.house.reported == [("Swap", "tiny", "OK")] * 2


async def test_a_candidate_that_is_unfit_is_refused_with_the_reason(admin: Asked) -> None:
    assert await refusal(admin.stub.Swap(pb.SwapRequest(model="tiny"))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "version '3' of model 'tiny' gives no numbers; '1' serves on",
    )
    [status] = decode_statuses(await admin.stub.Status(pb.StatusRequest()))
    assert status.current == version_info("1")
    assert status.failures == (Failure("3", 1.7e9, "the model gives no numbers"),)


async def test_rollback_goes_back(admin: Asked) -> None:
    await admin.stub.Swap(REQUESTS["Swap"])

    report = decode_report(await admin.stub.Rollback(pb.RollbackRequest(model="tiny")))

    assert (report.old.version, report.new.version) == ("2", "1")
    assert admin.control.asked[-1] == ("rollback", "tiny", "unix")


async def test_a_canary_is_started_stopped_and_promoted(admin: Asked) -> None:
    running = decode_canary(await admin.stub.StartCanary(REQUESTS["StartCanary"]))
    stopped = decode_canary(await admin.stub.StopCanary(REQUESTS["StopCanary"]))
    await admin.stub.StartCanary(REQUESTS["StartCanary"])
    report = decode_report(await admin.stub.Promote(REQUESTS["Promote"]))

    assert running == CanaryStatus(version_info("2", None), 0.1, 1.7e9, True, "", {"requests": 12.0})
    assert (stopped.running, stopped.outcome) == (False, "stopped")
    assert (report.old.version, report.new.version, report.changed) == ("1", "2", True)
    assert admin.control.asked[0] == ("start_canary", "tiny", "2", "0.1", "unix")


# What is refused before anything is done


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        (
            "Swap",
            pb.SwapRequest(model="tiny", version="../../etc"),
            "version '../../etc': expected the number of a version directory, such as '2'",
        ),
        (
            "Swap",
            pb.SwapRequest(model="tiny", version="2", digest="abc"),
            "digest 'abc': expected a SHA-256 of 64 hexadecimal digits; `guard verify` shows it",
        ),
        (
            "StartCanary",
            pb.StartCanaryRequest(model="tiny", share=0.1),
            "version: expected the version to try, got none; name one",
        ),
        (
            "StartCanary",
            pb.StartCanaryRequest(model="tiny", version="2", share=1.5),
            "share: expected a number above 0 and at most 1, got 1.5",
        ),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_by_name(
    admin: Asked, method: str, request_: Any, words: str
) -> None:
    assert await refusal(getattr(admin.stub, method)(request_)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        words,
    )
    assert admin.control.asked == []


@pytest.mark.parametrize("version", ["0", "01", "-1", "1/..", "1\n", "٣", "9" * 19, ".."])
def test_no_version_is_a_path(version: str) -> None:
    with pytest.raises(errors.InvalidRequestError):
        checked_version(version)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0000001, float("nan"), float("inf")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(errors.InvalidRequestError):
        checked_share(share)


def test_what_is_right_passes() -> None:
    assert (checked_version(""), checked_version("12"), checked_share(1.0)) == ("", "12", 1.0)
    assert (checked_digest(""), checked_digest("AB" * 32)) == ("", "ab" * 32)


# How calls end


@pytest.mark.parametrize("method", REQUESTS)
async def test_an_unknown_model_is_not_found(admin: Asked, method: str) -> None:
    request = type(REQUESTS[method])()
    request.CopyFrom(REQUESTS[method])
    request.model = "nope"

    assert await refusal(getattr(admin.stub, method)(request)) == (
        grpc.StatusCode.NOT_FOUND,
        "model 'nope' is not served here; served: ['tiny']",
    )
    assert admin.house.reported == [(method, "nope", "NOT_FOUND")]


@pytest.mark.parametrize("method", REQUESTS)
async def test_every_error_of_the_house_gets_its_status_from_every_method(admin: Asked, method: str) -> None:
    for cls in RAISED:
        admin.control.error = cls("why not")
        assert await refusal(getattr(admin.stub, method)(REQUESTS[method])) == (STATUS_OF[cls], "why not")
    assert [code for _, _, code in admin.house.reported] == [STATUS_OF[cls].name for cls in RAISED]


@pytest.mark.parametrize("method", REQUESTS)
async def test_a_defect_tells_nothing_of_the_inside(
    admin: Asked, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin.control.error = ZeroDivisionError("secret")

    code, words = await refusal(getattr(admin.stub, method)(REQUESTS[method]))

    assert (code, "secret" in words) == (grpc.StatusCode.INTERNAL, False)
    assert words.startswith("unexpected error, see server log ")
    assert words.rpartition(" ")[2] in caplog.text


async def test_a_method_that_is_not_there_and_a_message_that_is_none(admin: Asked) -> None:
    async with grpc.aio.insecure_channel(admin.house.address) as channel:
        unknown = channel.unary_unary("/guard.admin.v1.GuardAdmin/Explode")
        code, words = await refusal(unknown(b""))
        assert (code, words) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "method '/guard.admin.v1.GuardAdmin/Explode' is not served; this is the admin port: "
            "guard.admin.v1 and V2's repository calls; inference has a port of its own",
        )
        code, words = await refusal(channel.unary_unary("/guard.admin.v1.GuardAdmin/Swap")(b"\xff\xff"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words.startswith("the message of 2 bytes is not one that Swap takes")
        large = b"\n" * (4 * 1024 * 1024 + 1)
        code, words = await refusal(channel.unary_unary("/guard.admin.v1.GuardAdmin/Status")(large))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert words.startswith("the message has 4194305 bytes, expected at most 4194304")
    ends = [
        ("/guard.admin.v1.GuardAdmin/Explode", "UNIMPLEMENTED"),
        ("Swap", "INVALID_ARGUMENT"),
        ("Status", "RESOURCE_EXHAUSTED"),
    ]
    assert admin.house.reported == [(method, "", code) for method, code in ends]
    assert admin.house.events == [
        ("admin_call", {"method": method, "model": "", "actor": "", "code": code}) for method, code in ends
    ]


async def test_a_second_operation_on_a_model_is_told_that_it_is_busy(admin: Asked) -> None:
    admin.control.hold = asyncio.Event()
    first = asyncio.ensure_future(admin.stub.Swap(REQUESTS["Swap"]))
    await asyncio.wait_for(admin.control.held.wait(), PATIENCE_S)

    assert await refusal(admin.stub.Rollback(REQUESTS["Rollback"])) == (
        grpc.StatusCode.ABORTED,
        "another operation on model 'tiny' is under way; wait for its end",
    )
    admin.control.hold.set()
    assert (await asyncio.wait_for(first, PATIENCE_S)).changed is True


async def test_every_call_is_recorded_with_who_asked_for_what_and_how_it_ended(admin: Asked) -> None:
    await admin.stub.Swap(REQUESTS["Swap"])
    await refusal(admin.stub.Swap(pb.SwapRequest(model="x" * 300, version="../", digest="d")))
    await admin.stub.StartCanary(REQUESTS["StartCanary"])
    await admin.stub.Status(pb.StatusRequest())

    assert admin.house.events == [
        ("admin_call", {**by, **rest})
        for by, rest in (
            (called("Swap"), {"version": "2", "digest": ""}),
            (called("Swap", "x" * 200 + "…", "INVALID_ARGUMENT"), {"version": "../", "digest": "d"}),
            (called("StartCanary"), {"version": "2", "share": 0.1}),
            (called("Status", ""), {}),
        )
    ]


def called(method: str, model: str = "tiny", code: str = "OK") -> dict[str, object]:
    return {"method": method, "model": model, "actor": "unix", "code": code}


# What is sent is what was meant

CANARY = CanaryStatus(version_info("7", None), 0.05, 3.5, True, "", {"requests": 12.0, "frr": 0.0})
STATUSES = (
    ModelStatus("bare", "monitor", None, (), (), None, ()),
    ModelStatus(
        "ü\n",
        "flag",
        version_info("3", 0.0),
        ("2", "1"),
        ("1", "2", "3", "10"),
        replace(CANARY, running=False, outcome="rolled back: latency", figures={}),
        (Failure("10", 9.25, "no such thing"),),
    ),
    ModelStatus(
        "some", "enforce", version_info("1", None), (), ("1",), CANARY, (), "the disk hangs", "it loads 2"
    ),
)


def test_statuses_come_back_as_they_were() -> None:
    wire = pb.StatusResponse.FromString(encode_statuses(STATUSES).SerializeToString())
    assert decode_statuses(wire) == STATUSES


@pytest.mark.parametrize("changed", [True, False])
def test_reports_and_canaries_come_back_as_they_were(changed: bool) -> None:
    steps = (Step("a model server loads it", 0.25), Step("its answers are compared", 0.5))
    old, new = version_info("1", None), version_info("2")
    report = SwapReport("tiny", old, new, 1.25, changed, "not written down", steps)
    assert decode_report(pb.SwapReport.FromString(encode_report(report).SerializeToString())) == report
    assert decode_canary(pb.CanaryStatus.FromString(encode_canary(CANARY).SerializeToString())) == CANARY


def test_every_field_of_the_control_room_is_on_the_wire() -> None:
    for cls in (CanaryStatus, Failure, ModelStatus, Step, SwapReport, VersionInfo):
        message = pb.DESCRIPTOR.message_types_by_name[cls.__name__]
        assert [field.name for field in message.fields] == [field.name for field in fields(cls)]


def test_words_that_are_no_text_can_be_sent_all_the_same() -> None:
    status = replace(STATUSES[1], failures=(Failure("2", 1.0, "no /models/\udcff"),))
    [sent] = decode_statuses(encode_statuses([status]))
    assert sent.failures == (Failure("2", 1.0, "no /models/\\udcff"),)
