"""``guard status``, ``swap``, ``rollback``, ``canary`` and ``promote``."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["Canary", "Promote", "Rollback", "Status", "Swap"]

DEFAULT_ADDRESS: Final = "127.0.0.1:8002"
DEFAULT_TIMEOUT_S: Final = 300.0


class Status:
    """``guard status``."""

    name = "status"
    help = "show what a running guard serves, served before and could serve"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model and how to reach the guard."""
        parser.add_argument("model", nargs="?", default="", help="one model (default: all)")
        _add_connection(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Print a table."""
        from guard.admin.wording import status_lines

        with _client(arguments) as client:
            statuses = client.status(arguments.model)
        return _tell(arguments, statuses, status_lines(statuses))


class Swap:
    """``guard swap MODEL``."""

    name = "swap"
    help = "have a running guard serve another version, without losing a request"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model, the version and how to reach the guard."""
        _add_model(parser)
        parser.add_argument("--version", default="", help="version to serve (default: the highest one)")
        parser.add_argument(
            "--digest", default="", help="only if its artifact has this SHA-256 (`guard verify`)"
        )
        _add_connection(parser, operation=True)

    def run(self, arguments: argparse.Namespace) -> int:
        """Swap, and print what is served now."""
        with _client(arguments) as client:
            report = client.swap(arguments.model, arguments.version, arguments.digest)
        return _tell_swap(arguments, report)


class Rollback:
    """``guard rollback MODEL``."""

    name = "rollback"
    help = "have a running guard serve the version that it served before"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model and how to reach the guard."""
        _add_model(parser)
        _add_connection(parser, operation=True)

    def run(self, arguments: argparse.Namespace) -> int:
        """Go back, and print what is served now."""
        with _client(arguments) as client:
            report = client.rollback(arguments.model)
        return _tell_swap(arguments, report)


class Promote:
    """``guard promote MODEL``."""

    name = "promote"
    help = "have a running guard serve the candidate that it tries"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the model and how to reach the guard."""
        _add_model(parser)
        _add_connection(parser, operation=True)

    def run(self, arguments: argparse.Namespace) -> int:
        """Promote, and print what is served now."""
        with _client(arguments) as client:
            report = client.promote(arguments.model)
        return _tell_swap(arguments, report)


class Canary:
    """``guard canary start | stop | status MODEL``."""

    name = "canary"
    help = "try another version on a share of a running guard's requests"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the three actions."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        start = actions.add_parser("start", help="let a version answer a share of the requests")
        _add_model(start)
        start.add_argument("version", metavar="VERSION", help="version to try")
        start.add_argument("--share", type=float, default=0.05, help="share of the requests (default 0.05)")
        _add_connection(start, operation=True)
        stop = actions.add_parser("stop", help="take it off the traffic")
        _add_model(stop)
        _add_connection(stop, operation=True)
        status = actions.add_parser("status", help="show what has been counted and measured")
        _add_model(status)
        _add_connection(status)

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and print what is known of the canary."""
        from guard.admin.wording import canary_lines
        from guard.errors import OperationError

        model = arguments.model
        with _client(arguments) as client:
            if arguments.action == "start":
                canary = client.start_canary(model, arguments.version, arguments.share)
            elif arguments.action == "stop":
                canary = client.stop_canary(model)
            else:
                [known] = client.status(model)
                if known.canary is None:
                    raise OperationError(
                        f"model {model!r} has had no canary since the guard started; `guard canary start` "
                        f"starts one"
                    )
                canary = known.canary
        return _tell(arguments, canary, canary_lines(model, canary))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name the model is served under")


def _add_connection(parser: argparse.ArgumentParser, *, operation: bool = False) -> None:
    parser.add_argument(
        "--admin",
        metavar="HOST:PORT|unix:PATH",
        default=os.environ.get("GUARD_ADMIN") or DEFAULT_ADDRESS,
        help=f"the guard's admin port or socket (default: GUARD_ADMIN, else {DEFAULT_ADDRESS})",
    )
    token = os.environ.get("GUARD_ADMIN_TOKEN_FILE") or None
    parser.add_argument(
        "--token-file",
        type=Path,
        default=Path(token) if token else None,
        help="file with the guard's admin token (default: GUARD_ADMIN_TOKEN_FILE)",
    )
    parser.add_argument("--tls-ca", type=Path, help="PEM of who signed the guard's certificate; turns TLS on")
    parser.add_argument("--tls-cert", type=Path, help="PEM of your certificate, where the guard asks for one")
    parser.add_argument("--tls-key", type=Path, help="PEM of its key")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        help=f"seconds to wait for the answer (default {DEFAULT_TIMEOUT_S:g})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    if operation:
        parser.add_argument(
            "--wait", action="store_true", help="wait while another operation on the model is under way"
        )


def _client(arguments: argparse.Namespace) -> Any:
    """Return an AdminClient, whose room is not entered by who only asks for help."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its errors reach us as exceptions
    from guard.admin.client import AdminClient, Connection

    return AdminClient(
        Connection(
            address=arguments.admin,
            token_file=arguments.token_file,
            tls_ca=arguments.tls_ca,
            tls_cert=arguments.tls_cert,
            tls_key=arguments.tls_key,
            timeout_s=arguments.timeout,
            wait=getattr(arguments, "wait", False),
        )
    )


def _tell_swap(arguments: argparse.Namespace, report: Any) -> int:
    from guard.admin.wording import swap_lines

    return _tell(arguments, report, swap_lines(report))


def _tell(arguments: argparse.Namespace, told: Any, lines: Iterable[str]) -> int:
    from guard.admin.wording import as_json

    print(as_json(told) if arguments.json else "\n".join(lines))
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return seconds
