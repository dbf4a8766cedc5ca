"""The ``guard`` command: ``serve`` and ``verify`` here, more in other rooms and from installed packages."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

from guard import __version__
from guard.admin.cli import Canary, Promote, Rollback, Status, Swap
from guard.audit.audit_command import ACTIONS_GROUP, Audit
from guard.errors import GuardError, SettingsError
from guard.export.export_command import Export

__all__ = ["Command", "Serve", "Unavailable", "Verify", "main"]

EXIT_ERROR = 2
EXIT_UNREAD = 141
"""As of a program that the signal SIGPIPE ended."""
_PROBED = "passed: it answers here as it did at calibration"
_UNPROBED = "none: written by an older guard; calibrate again to have one"


@runtime_checkable
class Command(Protocol):
    """A subcommand; other packages offer theirs through the entry-point group ``guard.commands``."""

    name: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's flags."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code."""
        ...


class Serve:
    """``guard serve``."""

    name = "serve"
    help = "serve the models of a repository, each behind its check"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags; each is also a TOML key and a GUARD_* variable."""
        parser.epilog = (
            "All other settings are keys of the TOML file, or GUARD_* variables such as GUARD_AUDIT_LOG; "
            "deploy/guard.example.toml describes each."
        )
        parser.add_argument("--config", type=Path, help="TOML file with settings; flags win over it")
        parser.add_argument("--repository", help="model repository, <repository>/<model>/<version>/")
        parser.add_argument("--host", help="address to listen on (default 0.0.0.0)")
        parser.add_argument("--port", help="gRPC port (default 8001)")
        parser.add_argument("--metrics-port", help="HTTP port of /metrics, /healthz, /readyz (default 9100)")
        parser.add_argument("--policy", help="enforce, flag or monitor (default enforce)")
        parser.add_argument("--on-uncheckable", help="refuse or answer (default refuse)")
        parser.add_argument("--device", help="auto, cpu or cuda (default auto)")
        parser.add_argument("--workers", help="processes that serve on the one port (default 1)")
        parser.add_argument("--threads", help="CPU threads of one device call (default: one a core)")
        parser.add_argument(
            "--admin-port", help="port of the admin face; needs a token or client certificates"
        )
        parser.add_argument("--admin-socket", help="unix socket of the admin face, for this user alone")
        parser.add_argument("--admin-token-file", help="file with the token that the admin face asks for")
        parser.add_argument("--log-level", help="debug, info, warning or error (default info)")
        parser.add_argument("--log-format", help="json or text (default json)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Serve until SIGTERM."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our log is JSON; its errors reach us as exceptions
        from guard.settings import load_settings

        flags = {name: value for name, value in vars(arguments).items() if name not in {"config", "command"}}
        settings = load_settings(arguments.config, flags)
        if settings.workers > 1:  # after the settings, so that a wrong one is told at once
            from guard.supervisor import serve
        else:
            from guard.server import serve

        asyncio.run(serve(settings))
        return 0


class Verify:
    """``guard verify DIR``."""

    name = "verify"
    help = "verify an artifact: hashes, paths, profile, model"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the directory."""
        parser.add_argument("directory", type=Path, help="an artifact, <repository>/<model>/<version>")

    def run(self, arguments: argparse.Namespace) -> int:
        """Read the artifact, load, warm up and probe its model, and say what it is."""
        from guard.artifact.detector import boundaries_of, promise_text, value_text
        from guard.runtime.loader import RuntimeOptions, load_model

        model = load_model(
            arguments.directory.resolve().parent.name,
            arguments.directory,
            RuntimeOptions(device="cpu", second_opinions=True),
        )
        model.close()
        profile = model.profile
        print(f"{arguments.directory}: ok")
        print(f"  model     {model.profile.model_name}, SHA-256 {model.profile.model_sha256}")
        print(f"  artifact  SHA-256 {model.digest}")
        print(f"  check     {profile.check.detector}, {profile.check.blend}, N = {profile.check.n_overlays}")
        print(f"  probe     {_PROBED if model.probed else _UNPROBED}")
        for name, (_, boundary) in zip(("boundary", "refused"), boundaries_of(profile), strict=False):
            print(f"  {name:<10}{value_text(boundary)}, false rejections {promise_text(boundary)}")
        for place, (name, why_off) in enumerate(model.opinions.told):
            print(f"  {'' if place else 'asks also':<10}{name}{f', off: {why_off}' if why_off else ''}")
        return 0


class Unavailable:
    """Stands in for a command whose package cannot be imported, so that the others still work."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name = name
        self.help = "not available here; run it to see why"
        self._error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take whatever the real command would have taken."""
        parser.prefix_chars = ""
        parser.add_argument("anything", nargs="*")

    def run(self, arguments: argparse.Namespace) -> int:
        """Say why it is not available."""
        raise SettingsError(
            f"command {self.name!r} comes from a package that cannot be loaded "
            f"({type(self._error).__name__}: {self._error}); repair or remove that package"
        )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is not known here, so that the command's own help is named, not that of all."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"error: {message}; see `{self.prog} --help`\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(prog="guard", description="A guard against backdoored image classifiers.")
    parser.add_argument("--version", action="version", version=f"guard {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {command.name: command for command in _commands(argv)}
    for command in commands.values():
        command.add_arguments(
            subparsers.add_parser(command.name, help=command.help, description=command.help)
        )
    arguments = parser.parse_args(argv)
    try:
        code = commands[arguments.command].run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has read enough: `guard status | head -2`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to fail at the exit
        return EXIT_UNREAD
    except (GuardError, OSError) as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        return _fail("ONNX Runtime is not installed; install inference-guard[cpu], or [gpu] for CUDA")
    except KeyboardInterrupt:
        return 130


def _commands(argv: list[str]) -> list[Command]:
    """Return the commands to choose from; where a built-in one is asked for, no other's are loaded."""
    own: list[Command] = [
        Serve(),
        Verify(),
        Audit(_found(ACTIONS_GROUP) if argv[:1] == ["audit"] and argv[1:2] != ["verify"] else ()),
        Export(),
        Status(),
        Swap(),
        Rollback(),
        Canary(),
        Promote(),
    ]
    taken = {command.name for command in own}
    if argv and argv[0] in taken:
        return own
    return [*own, *_found("guard.commands", taken)]


def _found(group: str, taken: Collection[str] = ()) -> list[Command]:
    """Return what other packages offer, by name."""
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    return [_load(entry) for entry in found if entry.name not in taken]


def _load(entry: EntryPoint) -> Command:
    try:
        command: Command = entry.load()
    except Exception as error:  # noqa: BLE001 - another package's defect must not break this one's commands
        return Unavailable(entry.name, error)
    return command


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
