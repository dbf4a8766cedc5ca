"""TLS to a model server: it has to be who it says, and so has the guard where it is asked."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from guard.errors import SettingsError
from tests.guard.admin_house import Authority, make_authority
from tests.guard.upstream_house import in_front_of, refused, sent, tiny_repository, values
from tests.model_server import ModelServer
from tests.tiny_models import linear_classifier

SHORT = {"upstream_wait_s": 0.05}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def shown_by_guard(authority: Authority) -> Authority:
    return authority.issue("guard")


def server_by(authority: Authority) -> ModelServer:
    """Return a model server that asks for client certificates of the authority that signed its own."""
    end = authority.issue("server")
    credentials = grpc.ssl_server_credentials(
        [(end.key.read_bytes(), end.cert.read_bytes())], authority.cert.read_bytes(), True
    )
    return ModelServer(linear_classifier(), credentials=credentials)


async def test_guard_and_server_know_each_other(
    tmp_path: Path, authority: Authority, shown_by_guard: Authority
) -> None:
    own = {
        "upstream_tls_ca": authority.cert,
        "upstream_tls_cert": shown_by_guard.cert,
        "upstream_tls_key": shown_by_guard.key,
    }
    async with (
        server_by(authority) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), own=own) as client,
    ):
        answer = await client.infer(sent())

    assert values(answer.parameters)["guard_verdict"] == "accept"


@pytest.mark.parametrize("missing", ["tls", "certificate", "authority"])
async def test_a_server_that_is_not_known_or_does_not_know_the_guard_is_not_asked(
    tmp_path: Path, authority: Authority, stranger: Authority, shown_by_guard: Authority, missing: str
) -> None:
    shown = {"upstream_tls_cert": shown_by_guard.cert, "upstream_tls_key": shown_by_guard.key}
    own = {
        "tls": {},
        "certificate": {"upstream_tls_ca": authority.cert},
        "authority": {"upstream_tls_ca": stranger.cert, **shown},
    }[missing]
    async with (
        server_by(authority) as upstream,
        in_front_of(upstream, tiny_repository(tmp_path), own=own, **SHORT) as client,
    ):
        error = await refused(client, sent())

    assert (error.code(), upstream.calls) == (grpc.StatusCode.UNAVAILABLE, [])


async def test_files_that_no_connection_can_be_made_with_are_named_at_the_start(
    tmp_path: Path, authority: Authority, shown_by_guard: Authority
) -> None:
    repository = tiny_repository(tmp_path)
    (tmp_path / "empty.crt").write_text("")
    shown = {"upstream_tls_cert": shown_by_guard.cert, "upstream_tls_key": authority.key}
    async with ModelServer(linear_classifier()) as upstream:
        for own, words in (
            ({"upstream_tls_ca": tmp_path / "nope.crt"}, "upstream_tls_ca .* cannot be read"),
            ({"upstream_tls_ca": tmp_path / "empty.crt"}, "upstream_tls_ca .* holds no certificate in PEM"),
            ({"upstream_tls_ca": authority.cert, **shown}, "are not a certificate and its key"),
        ):
            with pytest.raises(SettingsError, match=words):
                async with in_front_of(upstream, repository, own=own):
                    pass
