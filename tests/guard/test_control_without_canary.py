"""A guard that tries no candidates says so, and what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.control.api import Control
from guard.errors import UnknownModelError, UnsupportedRequestError
from tests.artifacts import write_tiny_artifact
from tests.serving import serving


async def test_a_canary_is_refused_and_what_to_do_instead_is_told(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path)
    async with serving(tmp_path) as client:
        control = client.server.control
        assert isinstance(control, Control)
        for asked in (
            control.start_canary("tiny", "1", share=0.1),
            control.promote("tiny"),
            control.stop_canary("tiny"),
        ):
            with pytest.raises(
                UnsupportedRequestError, match=r"tries no candidates .*; swap to the version, and"
            ):
                await asked
        with pytest.raises(UnknownModelError, match="'nope' is not served here"):
            await control.promote("nope")
        assert [status.canary for status in control.status()] == [None]
