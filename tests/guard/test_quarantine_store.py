"""What is kept of suspicious inputs: bounded, safe against hostile names, shared, and never in the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from guard.detection.threshold import Verdict
from guard.errors import SettingsError
from guard.incidents import Witness
from guard.metrics_catalogue import DropReason
from guard.quarantine import Bounds, Quarantine, read_contents, read_image
from guard.quarantine.item import ITEM_ID, folder_of, new_id, short_text
from guard.quarantine.store import Store
from tests.records import Tally, incident, picture

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
NOW = 1_800_000_000.0
WIDE = Bounds(10_000, 2**30, 1e9)
ITEM_BYTES = 1_450  # 896 of an image of 3 x 8 x 8 floats and its header, the rest of its record, about


def keep(root: Path, *incidents: object, bounds: Bounds = WIDE, now: float = NOW) -> Store:
    store = Store(root, bounds)
    store.keep(incidents, now)  # type: ignore[arg-type]
    store.close()
    return store


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def size_of(root: Path) -> int:
    return sum(
        (root / name).stat().st_size for name in files(root) if name[0] != "." and name != "client.key"
    )


def test_an_item_says_all_there_is_to_say_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    root = tmp_path / "quarantine"
    told = incident(3, at=NOW, row=2, label=7, model="resnet")
    keep(root, told)

    [item] = read_contents(root).items

    assert (item.model, item.version, item.digest, item.row) == ("resnet", "1", "ab" * 32, 2)
    assert (item.at, item.last_at, item.count) == (NOW, NOW, 1)
    assert (item.verdict, item.policy, item.passes, item.label) == ("reject", "enforce", 8, 7)
    assert (item.score, item.p_value) == (-0.125, 0.01)
    assert (item.layout, item.low, item.high) == ("NCHW", (0.0,), (1.0,))
    assert (item.dtype, item.shape) == ("<f4", (3, 8, 8))
    assert item.id.startswith("20270115T080000000000Z-")
    np.testing.assert_array_equal(read_image(root, item), told.image)
    assert files(root) == [".lock", "client.key", f"resnet/{item.id}.json", f"resnet/{item.id}.npy"]
    modes = {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (root, root / "resnet")} == {0o700}


def test_a_folder_can_be_used_whatever_the_umask_of_the_moment(tmp_path: Path) -> None:
    store = Store(tmp_path / "q", WIDE)
    before = os.umask(0o177)  # as while the admin face makes its socket
    try:
        store.keep([incident(0)], NOW)
    finally:
        os.umask(before)
    store.close()
    assert stat.S_IMODE((tmp_path / "q" / "tiny").stat().st_mode) == 0o700


def test_a_caller_can_be_told_again_but_not_who_it_was(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        callers = ["ipv4:10.0.0.7", "ipv4:10.0.0.7", "ipv4:10.0.0.8", ""]
        keep(root, *(incident(n, at=NOW + n, client=caller) for n, caller in enumerate(callers)))
    [unknown, third, second, first] = [item.client for item in read_contents(one).items]

    assert first == second != third
    assert unknown == ""
    assert "10.0.0" not in "".join(path.read_text("latin-1") for path in one.rglob("*") if path.is_file())
    assert read_contents(other).items[-1].client not in {first, third}
    keep(one, incident(9, at=NOW + 9))
    assert read_contents(one).items[0].client == first


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/abs", ".lock", "a\x00b", "x" * 300, "größe\n", "", "..", "\ud800"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "quarantine"
    keep(root, incident(model=name, request_id=name * 9, version="1"))

    [item] = read_contents(root).items
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents]

    assert outside == []
    assert item.request_id == short_text(name * 9)
    assert len(item.request_id) <= 513
    assert len([path for path in root.iterdir() if path.is_dir()]) == 1
    assert (root / folder_of(item.model) / f"{item.id}.npy").is_file()
    assert read_contents(root, model=item.model).items == (item,)


def test_names_of_models_do_not_collide() -> None:
    names = ["a", "A", "a/b", "a%2Fb", "a b", "x" * 300, "x" * 301, "", "=e3b0c44298fc1c14"]
    assert len({folder_of(name) for name in names}) == len(names)


def test_ids_sort_by_time_and_are_made_of_nothing_else() -> None:
    ids = [new_id(NOW + step / 10**6) for step in range(0, 3_000_000, 333_333)]
    assert ids == sorted(ids)
    assert all(ITEM_ID.fullmatch(id_) for id_ in ids)
    assert new_id(NOW) != new_id(NOW)


def test_the_same_image_is_kept_once_and_counted(tmp_path: Path) -> None:
    store = keep(tmp_path, *(incident(1, at=NOW + n) for n in range(3)), incident(2, at=NOW))
    keep(tmp_path, incident(1, at=NOW + 9, label=1), incident(1, at=NOW, model="other"))

    counts = {
        (item.model, item.count, item.last_at - NOW, item.label) for item in read_contents(tmp_path).items
    }

    assert store.items == 2
    assert counts == {("tiny", 4, 9.0, 5), ("tiny", 1, 0.0, 5), ("other", 1, 0.0, 5)}


def test_images_that_differ_in_shape_or_dtype_only_are_different(tmp_path: Path) -> None:
    image = np.zeros((3, 8, 8), np.float32)
    store = keep(
        tmp_path,
        incident(image),
        incident(image.reshape(8, 8, 3), layout="NHWC"),
        incident(image.view(np.uint32)),
        incident(np.asfortranarray(image)),  # the same
    )
    assert store.items == 3
    assert {(item.shape, item.dtype) for item in read_contents(tmp_path).items} == {
        ((3, 8, 8), "<f4"), ((8, 8, 3), "<f4"), ((3, 8, 8), "<u4"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        (Bounds(4, 2**30, 1e9), 4),
        (Bounds(100, int(5.5 * ITEM_BYTES), 1e9), 5),
        (Bounds(100, 2**30, 3.5), 4),
        (Bounds(100, 2**30, 1e9), 10),
    ],
)
def test_the_oldest_go_first_whichever_bound_is_met(tmp_path: Path, bounds: Bounds, left: int) -> None:
    store = keep(tmp_path, *(incident(n, at=NOW - 9 + n) for n in range(10)), bounds=bounds)

    items = read_contents(tmp_path).items

    assert [item.at - NOW for item in items] == [-n for n in range(left)]
    assert store.items == left
    assert store.held_bytes == size_of(tmp_path) <= bounds.max_bytes


def test_age_counts_though_nothing_comes_and_bounds_that_were_lowered_hold_from_the_start(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path, WIDE)
    store.keep([incident(n, at=NOW) for n in range(5)], NOW)
    store.keep([], NOW + 2e9)
    assert (store.items, store.held_bytes, size_of(tmp_path)) == (0, 0, 0)
    store.keep([incident(n, at=NOW) for n in range(5)], NOW)
    store.close()

    tally = Tally()
    Quarantine(tmp_path, Bounds(2, 2**30, 1e9), counts=tally, clock=lambda: NOW).close()

    assert tally.held == (2, size_of(tmp_path))


FLOOD = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
import numpy as np
from tests.records import incident
from guard.quarantine import Bounds
from guard.quarantine.store import Store

root = Path(sys.argv[1])
store = Store(root, Bounds(50, int(sys.argv[2]), 1e9))
for first in range(0, 10_000, 500):
    images = np.arange(first, first + 500, dtype=np.float32).repeat(192).reshape(500, 3, 8, 8)
    assert not store.keep([incident(image, at=1.0 + first + n) for n, image in enumerate(images)], 0.0)
    held = [path.stat().st_size for path in (root / "tiny").iterdir()]
    assert len(held) == 2 * store.items <= 100, held
    assert sum(held) == store.held_bytes <= int(sys.argv[2]), held
print(store.items)
"""


def run_script(script: str, *arguments: object) -> str:
    """Run a script in a process of its own, with neither types checked nor limits shared."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_bounds_hold_under_ten_thousand_inputs(tmp_path: Path) -> None:
    left = int(run_script(FLOOD, tmp_path, 40 * ITEM_BYTES))

    assert 35 <= left <= 45
    assert [item.at for item in read_contents(tmp_path).items] == [10_000.0 - n for n in range(left)]


def test_what_is_larger_than_all_that_may_be_kept_drives_nothing_out(tmp_path: Path) -> None:
    store = Store(tmp_path, Bounds(10, 3 * ITEM_BYTES, 1e9))
    store.keep([incident(1), incident(2)], NOW)

    dropped = store.keep([incident(np.zeros((3, 64, 64), np.float32))], NOW)

    assert dropped == {DropReason.TOO_LARGE: 1}
    assert store.items == 2
    store.close()


def test_the_folder_is_known_again_and_what_is_not_ours_is_reported_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path, *(incident(n, at=NOW + n) for n in range(6)))
    good = [item.id for item in read_contents(tmp_path).items]
    folder = tmp_path / "tiny"
    (folder / f"{good[0]}.json").write_text("{")
    record = json.loads((folder / f"{good[1]}.json").read_text())
    (folder / f"{good[1]}.json").write_text(json.dumps({**record, "id": good[2]}))
    (folder / f"{good[2]}.json").write_bytes(b" " * 100_000)
    (folder / f"{good[3]}.json").unlink()
    os.mkfifo(folder / f"{good[3]}.json")
    (folder / "passwords.txt").touch()
    (folder / f"{good[4]}.pkl").write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    leftovers = {f"tiny/{new_id(NOW)}.npy", f"tiny/.writing-{new_id(NOW)}.json"}  # of a crash
    for name in leftovers:
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    before = set(files(tmp_path))

    store = keep(tmp_path)

    assert store.items == 2
    assert before - set(files(tmp_path)) == leftovers
    told = {record.getMessage(): record for record in caplog.records}
    assert vars(told["passed over in quarantine: damaged files"])["files"] == 3
    assert vars(told["passed over in quarantine: foreign files"])["files"] == 3
    contents = read_contents(tmp_path)
    assert [item.id for item in contents.items] == good[4:]
    assert len(contents.passed_over) == 6


def test_two_guards_share_a_folder_and_its_bounds(tmp_path: Path) -> None:
    bounds = Bounds(6, 2**30, 1e9)
    one, other = Store(tmp_path, bounds), Store(tmp_path, bounds)
    for n in range(10):
        (one if n % 2 else other).keep([incident(n, at=NOW + n), incident(100, at=NOW + n)], NOW)

    items = read_contents(tmp_path).items

    assert len(items) == 6
    assert one.items == 6
    assert one.held_bytes == size_of(tmp_path)
    assert [item.at - NOW for item in items if item.count == 1] == [9.0, 8.0, 7.0, 6.0, 5.0]
    one.close()
    other.close()


def test_what_another_guard_only_added_is_counted(tmp_path: Path) -> None:
    bounds = Bounds(4, 2**30, 1e9)
    one, other = Store(tmp_path, bounds), Store(tmp_path, bounds)
    one.keep([incident(0, at=NOW), incident(0, at=NOW)], NOW)
    other.keep([], NOW)  # from now on it looks again only where something was changed
    for n in range(1, 6):
        (one if n < 3 else other).keep([incident(n, at=NOW + n)], NOW)
    one.close()
    other.close()

    assert [item.at - NOW for item in read_contents(tmp_path).items] == [5.0, 4.0, 3.0, 2.0]


SHARING = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.records import Tally, incident
from guard.quarantine import Bounds, Quarantine

tally = Tally()
quarantine = Quarantine(Path(sys.argv[1]), Bounds(30, 2**30, 1e9), counts=tally)
print("open", flush=True)
sys.stdin.readline()
for number in range(200):
    quarantine.saw(incident(int(sys.argv[2]) + number // 2))
quarantine.close(60.0)
print(sum(tally.counted.values()))
"""


def test_two_processes_at_once_keep_what_is_bounded_and_whole(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, tmp_path, str(start)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for start in (0, 50)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=200)[0] for process in processes]

    contents = read_contents(tmp_path)

    assert ends == ["0\n", "0\n"]
    assert (len(contents.items), contents.passed_over) == (30, ())
    for item in contents.items:
        assert read_image(tmp_path, item).shape == (3, 8, 8)
    assert len({item.sha256 for item in contents.items}) == 30
    assert keep(tmp_path).held_bytes == size_of(tmp_path)


FULL_DISK = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.records import incident
from guard.quarantine import Bounds
from guard.quarantine.store import Store

store = Store(Path(sys.argv[1]), Bounds(4, 2**30, 1e9))
store.keep([incident(n) for n in range(4)], 0.0)
dropped = []
for limit in (100, 950):  # neither image nor record; the image only
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    dropped.append(store.keep([incident(10), incident(11), incident(1)], 0.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
dropped.append(store.keep([incident(12, request_id="after")], 0.0))
print(json.dumps([dropped, store.items]))
"""


def test_a_full_disk_drops_what_comes_and_nothing_that_is_there(tmp_path: Path) -> None:
    dropped, items = json.loads(run_script(FULL_DISK, tmp_path))
    contents = read_contents(tmp_path)

    assert dropped[0] == {"unwritable": 3}
    assert dropped[2] == {}
    assert items == len(contents.items) == 4
    assert contents.items[0].request_id == "after"
    assert sorted(name.rpartition(".")[2] for name in files(tmp_path / "tiny")) == ["json"] * 4 + ["npy"] * 4


def test_what_is_unchecked_is_not_kept_and_what_is_told_is_copied(tmp_path: Path) -> None:
    tally = Tally()
    quarantine = Quarantine(tmp_path, WIDE, counts=tally)
    image = picture(1)
    quarantine.saw(incident(image, verdict=Verdict.FLAG))
    image[:] = 0
    quarantine.saw(incident(2, verdict=Verdict.UNCHECKED, score=float("nan"), p_value=float("nan")))
    quarantine.close(60.0)

    [item] = read_contents(tmp_path).items

    assert isinstance(quarantine, Witness)
    assert item.verdict is Verdict.FLAG
    np.testing.assert_array_equal(read_image(tmp_path, item), picture(1))
    assert tally.held == (1, size_of(tmp_path))


def test_whoever_tells_never_waits_and_what_there_is_no_room_for_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()
    keep_now = Store.keep

    def slow(self: Store, incidents: object, now: float) -> object:
        if incidents:
            entered.set()
            assert go.wait(PATIENCE_S)
        return keep_now(self, incidents, now)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "keep", slow)
    tally = Tally()
    quarantine = Quarantine(tmp_path, WIDE, counts=tally, max_waiting_bytes=10 * (768 + 1024))
    quarantine.saw(incident(0))
    assert entered.wait(PATIENCE_S)
    for number in range(1, 31):
        quarantine.saw(incident(number))
    go.set()
    quarantine.close(60.0)

    assert len(read_contents(tmp_path).items) == 11
    assert tally.counted[DropReason.QUEUE_FULL] == 20


def test_a_folder_that_goes_away_costs_items_and_not_the_guard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    root = tmp_path / "quarantine"
    quarantine = Quarantine(root, WIDE, counts=tally)
    root.rename(tmp_path / "gone")
    quarantine.saw(incident(0))
    quarantine.close(60.0)

    assert tally.counted[DropReason.UNWRITABLE] == 1
    assert "suspicious inputs are not kept in quarantine" in caplog.text


def test_a_folder_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"quarantine folder .*file cannot be used .*'quarantine_dir'"):
        Store(tmp_path / "file", WIDE)
    keep(tmp_path / "q", incident(0))
    (tmp_path / "q" / "client.key").write_text("short")
    with pytest.raises(SettingsError, match=r"client.key is no key of 64 hex digits; remove it"):
        Store(tmp_path / "q", WIDE)
    assert stat.S_IMODE((tmp_path / "q" / ".lock").stat().st_mode) == 0o600


def test_a_link_to_a_folder_takes_nothing_for_it_would_not_be_counted(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "tiny").symlink_to(tmp_path / "else")
    store = Store(tmp_path / "q", WIDE)
    assert store.keep([incident(0)], NOW) == {DropReason.UNWRITABLE: 1}
    store.close()
    assert list((tmp_path / "else").iterdir()) == []


@pytest.mark.parametrize(
    "made_up",
    [
        {"shape": [8, 8]},
        {"shape": [3, 8, 8, 2]},
        {"low": [0.0, 0.0]},
        {"high": []},
        {"at": 1e300},
        {"last_at": -1.0},
        {"label": 2**70},
    ],
)
def test_a_record_of_no_image_is_passed_over(tmp_path: Path, made_up: dict[str, object]) -> None:
    keep(tmp_path, incident(0), incident(1))
    path = tmp_path / "tiny" / f"{read_contents(tmp_path).items[0].id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **made_up}))

    contents = read_contents(tmp_path)

    assert (len(contents.items), contents.passed_over) == (1, (path,))


def test_what_a_link_in_the_folder_points_to_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "else").write_bytes(b"somebody's own")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / ".lock").symlink_to(tmp_path / "else")
    with pytest.raises(SettingsError, match=r"quarantine folder .* cannot be used"):
        keep(tmp_path / "q", incident(0))
    assert (tmp_path / "else").read_bytes() == b"somebody's own"
