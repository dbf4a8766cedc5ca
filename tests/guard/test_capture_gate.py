"""The gate of CUDA captures: many hold it at a time, or one alone, who never waits for that."""

from __future__ import annotations

import threading

import pytest

from guard.runtime.capture_gate import CaptureGate

PATIENCE_S = 60.0


def test_who_comes_to_a_free_gate_has_it_alone() -> None:
    gate = CaptureGate()
    with gate.alone_if_free() as alone:
        assert alone


def test_who_comes_to_a_held_gate_holds_it_with_others_at_once() -> None:
    gate = CaptureGate()
    with gate.shared(), gate.shared(), gate.alone_if_free() as alone:
        assert not alone
    with gate.alone_if_free() as alone:
        assert alone


def test_others_wait_until_who_has_it_alone_is_done() -> None:
    gate = CaptureGate()
    order: list[str] = []
    came = threading.Event()

    def another() -> None:
        came.set()
        with gate.shared():
            order.append("other")

    with gate.alone_if_free() as alone:
        thread = threading.Thread(target=another)
        thread.start()
        assert came.wait(PATIENCE_S)
        order.append("alone")
    thread.join(PATIENCE_S)
    assert alone
    assert order == ["alone", "other"]


def test_two_are_never_alone_together() -> None:
    gate = CaptureGate()
    inside, most, alone_count = [0], [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for turn in range(300):
            if turn % 3:
                with gate.shared():
                    pass
                continue
            with gate.alone_if_free() as alone:
                if alone:
                    with lock:
                        alone_count[0] += 1
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    with lock:
                        inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert most[0] == 1
    assert alone_count[0] > 0


@pytest.mark.parametrize("way", ["shared", "alone_if_free"])
def test_an_error_gives_the_gate_back(way: str) -> None:
    gate = CaptureGate()
    with pytest.raises(KeyError), getattr(gate, way)():
        raise KeyError("a call that failed")
    with gate.alone_if_free() as alone:
        assert alone
