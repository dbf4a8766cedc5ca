"""What may be set of a single model, and what must not stand beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.errors import SettingsError
from guard.settings import Settings, load_settings


def load(tmp_path: Path, toml: str) -> Settings:
    (tmp_path / "guard.toml").write_text(toml)
    return load_settings(tmp_path / "guard.toml", {"repository": "models"})


def refusal(tmp_path: Path, toml: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, toml)
    return str(refused.value)


def test_a_share_is_checked_under_monitor_alone(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "policy = 'monitor'\nsampling = 0.25\n"
        "[models.cats]\nsampling = 0\n[models.dogs]\npolicy = 'enforce'\nsampling = 1",
    )

    assert [settings.sampling_of(name) for name in ("cats", "dogs", "other")] == [0.0, 1.0, 0.25]


@pytest.mark.parametrize("policy", ["enforce", "flag"])
@pytest.mark.parametrize(
    ("toml", "what"),
    [
        ("policy = '{policy}'\nsampling = 0.5", "sampling to be 1 with policy '{policy}', got 0.5"),
        (
            "policy = 'monitor'\nsampling = 0.5\n[models.cats]\npolicy = '{policy}'",
            "models.cats.sampling to be 1 with policy '{policy}', got 0.5",
        ),
        (
            "policy = '{policy}'\n[models.cats]\nsampling = 0.0",
            "models.cats.sampling to be 1 with policy '{policy}', got 0",
        ),
    ],
)
def test_what_could_be_refused_is_always_checked(tmp_path: Path, policy: str, toml: str, what: str) -> None:
    assert refusal(tmp_path, toml.format(policy=policy)) == (
        f"settings: expected {what.format(policy=policy)}; have everything checked, or set the policy "
        f"'monitor'"
    )


@pytest.mark.parametrize("rate", ["-0.1", "1.1", "nan"])
def test_a_share_is_one(tmp_path: Path, rate: str) -> None:
    assert refusal(tmp_path, f"policy = 'monitor'\nsampling = {rate}").startswith("setting 'sampling': ")


def test_models_are_passed_through_only_by_name_beside_guarded_ones(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[models.cats]\nupstream = 'there:8001'\n"
        "[models.words]\nupstream = 'there:8001'\nguarded = false\nupstream_version = '3'",
    )

    assert (settings.guarded, settings.unguarded) == (("cats",), ("words",))


def test_a_share_of_full_checks_is_a_model_s_own_or_the_guard_s(tmp_path: Path) -> None:
    settings = load(tmp_path, "full_check_share = 0.25\n[models.cats]\nfull_check_share = 0\n[models.dogs]\n")
    assert [settings.full_check_share_of(name) for name in ("cats", "dogs", "other")] == [0.0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("toml", "field"),
    [
        ("full_check_share = 1.5", "full_check_share"),
        ("drift_false_alarm_rate = 0.0", "drift_false_alarm_rate"),
        ("drift_false_alarm_rate = 1.0", "drift_false_alarm_rate"),
        ("drift_cusum_limit = 0.0", "drift_cusum_limit"),
        ("drift_cusum_limit = inf", "drift_cusum_limit"),
    ],
)
def test_settings_of_drift_that_make_no_sense_are_refused(tmp_path: Path, toml: str, field: str) -> None:
    assert refusal(tmp_path, toml).startswith(f"setting {field!r}: ")


@pytest.mark.parametrize(
    "setting",
    [
        "policy = 'monitor'",
        "sampling = 1.0",
        "full_check_share = 0",
        "second_opinions = 'off'",
        "upstream_check = 'local'",
    ],
)
def test_what_says_how_to_check_has_no_place_where_nothing_is(tmp_path: Path, setting: str) -> None:
    words = refusal(tmp_path, f"[models.words]\nupstream = 'there:1'\nguarded = false\n{setting}")

    assert f"expected no {setting.split(maxsplit=1)[0]} beside guarded = false" in words


def test_without_a_server_there_is_nobody_to_pass_to(tmp_path: Path) -> None:
    assert "expected upstream beside guarded = false" in refusal(tmp_path, "[models.words]\nguarded = false")


@pytest.mark.parametrize(
    ("guarded", "other"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("127.0.0.1:8001", "localhost:08001"),
        ("[::1]:8001", "127.0.0.1:8001"),
        ("models.example:8001", "Models.Example.:8001"),
        ("unix:/run/models/s", "unix:/run/models/../models/s"),
    ],
)
def test_no_model_is_both_guarded_and_passed_through(tmp_path: Path, guarded: str, other: str) -> None:
    words = refusal(
        tmp_path,
        f"[models.cats]\nupstream = '{guarded}'\nupstream_model = 'm'\n"
        f"[models.aside]\nupstream = '{other}'\nupstream_model = 'm'\nguarded = false",
    )

    assert words == (
        f"settings: models.aside passes requests without a check to what models.cats guards, {other}; leave "
        f"out one of them"
    )


def test_another_model_of_the_same_server_may_be_passed_through(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[models.cats]\nupstream = 'there:1'\n"
        "[models.words]\nupstream = 'there:1'\nguarded = false\n"
        "[models.more]\nupstream = 'there:2'\nupstream_model = 'cats'\nguarded = false",
    )

    assert settings.unguarded == ("words", "more")
