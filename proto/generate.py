"""Regenerate the gRPC stubs in ``guard/rpc/pb`` from every ``.proto`` file beside this script.

Run from anywhere, with the development dependencies installed::

    python proto/generate.py            # rewrite guard/rpc/pb
    python proto/generate.py --root DIR # write DIR/guard/rpc/pb instead, to compare

``-Iguard/rpc/pb=proto`` makes protoc see the sources under the path of the package they are generated
into, so the generated imports are right as they come and nothing has to be edited afterwards.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
PACKAGE = Path("guard/rpc/pb")


def generate(root: Path) -> None:
    """Write the stubs of every ``.proto`` file under ``root/guard/rpc/pb``.

    Raises:
        RuntimeError: If protoc refuses one of the files; its own words are on standard error.
    """
    (root / PACKAGE).mkdir(parents=True, exist_ok=True)
    sources = sorted(f"{PACKAGE.as_posix()}/{path.name}" for path in PROTO.glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PACKAGE.as_posix()}={PROTO}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        f"--grpc_python_out={root}",
        *sources,
    ]
    code = protoc.main(arguments)
    if code != 0:
        raise RuntimeError(f"protoc ended with {code} on {', '.join(sources)}; expected 0, see above")


def main() -> None:
    """Read the command line and generate."""
    parser = argparse.ArgumentParser(description="Regenerate the gRPC stubs from proto/*.proto.")
    parser.add_argument("--root", type=Path, default=PROTO.parent, help="directory that holds guard/")
    generate(parser.parse_args().root.resolve())


if __name__ == "__main__":
    main()
