"""The committed gRPC stubs are what the committed proto files generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="the stub generator is in the `dev` extra")

REPOSITORY = Path(__file__).resolve().parents[2]
STUBS = REPOSITORY / "guard" / "rpc" / "pb"


def test_regenerating_the_stubs_changes_nothing(tmp_path: Path) -> None:
    generator = REPOSITORY / "proto" / "generate.py"
    subprocess.run([sys.executable, str(generator), "--root", str(tmp_path)], check=True, timeout=60)

    fresh = {path.name: path.read_text() for path in (tmp_path / "guard/rpc/pb").glob("*")}
    committed = {path.name: path.read_text() for path in STUBS.glob("*_pb2*.py*")}

    assert {name.split("_pb2")[0] for name in fresh} == {
        p.stem for p in (REPOSITORY / "proto").glob("*.proto")
    }
    assert sorted(committed) == sorted(fresh)
    assert [name for name in fresh if committed[name] != fresh[name]] == []
