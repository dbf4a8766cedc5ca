"""Settings: which source wins, and what a wrong value is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guard.detection.threshold import Policy
from guard.errors import SettingsError
from guard.model_settings import ModelSettings
from guard.settings import Settings, load_settings

KNOWN = ", ".join(Settings.model_fields)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("GUARD_"):
            monkeypatch.delenv(name)


def load(tmp_path: Path, toml: str | None = None, **flags: object) -> Settings:
    config = None
    if toml is not None:
        config = tmp_path / "guard.toml"
        config.write_text(toml)
    return load_settings(config, {"repository": "models", **flags})


def refusal(tmp_path: Path, toml: str | None = None, **flags: object) -> str:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, toml, **flags)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_defaults_are_those_of_a_guard_that_fails_closed(tmp_path: Path) -> None:
    settings = load(tmp_path)

    assert settings.model_dump() == {
        "repository": Path("models"),
        "host": "0.0.0.0",
        "port": 8001,
        "socket": None,
        "tls_cert": None,
        "tls_key": None,
        "tls_client_ca": None,
        "metrics_port": 9100,
        "policy": Policy.ENFORCE,
        "on_uncheckable": "refuse",
        "sampling": 1.0,
        "full_check_share": 0.01,
        "second_opinions": "flagged",
        "drift_false_alarm_rate": 0.001,
        "drift_cusum_limit": 12.0,
        "device": "auto",
        "precision": None,
        "cuda_graphs": False,
        "threads": 0,
        "max_batch_pairs": 64,
        "max_queue_rows": 1024,
        "max_client_rows": None,
        "client_header": None,
        "max_request_rows": 64,
        "max_message_bytes": 64 * 1024 * 1024,
        "workers": 1,
        "max_image_pixels": 2**24,
        "max_concurrent_requests": 256,
        "request_timeout_s": 30.0,
        "drain_timeout_s": 30.0,
        "state_dir": None,
        "watch_repository_s": 0.0,
        "upstream_poll_s": 1.0,
        "upstream_wait_s": 1.0,
        "upstream_load_s": 120.0,
        "canary_max_error_rate": 0.01,
        "canary_max_latency_ratio": 3.0,
        "canary_max_rejection_rate": 0.02,
        "canary_max_disagreement": 0.1,
        "canary_min_rows": 200,
        "admin_port": None,
        "admin_host": "127.0.0.1",
        "admin_socket": None,
        "admin_token_file": None,
        "admin_tls_cert": None,
        "admin_tls_key": None,
        "admin_tls_client_ca": None,
        "audit_log": None,
        "audit_max_bytes": 64 * 1024 * 1024,
        "audit_key_file": None,
        "quarantine_dir": None,
        "quarantine_max_items": 10_000,
        "quarantine_max_bytes": 1024 * 1024 * 1024,
        "quarantine_max_age_s": 2_592_000.0,
        "log_level": "info",
        "log_format": "json",
        "models": {},
    }


def test_flags_win_over_variables_over_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_PORT", "2")
    monkeypatch.setenv("GUARD_THREADS", "2")
    monkeypatch.setenv("GUARD_REPOSITORY", "from-a-variable")

    settings = load(tmp_path, "port = 1\nthreads = 1\nmetrics_port = 1\nrepository = 'x'", port="3")

    assert (settings.port, settings.threads, settings.metrics_port) == (3, 2, 1)
    assert (settings.max_batch_pairs, settings.repository) == (64, Path("models"))


def test_a_flag_not_given_leaves_the_setting_to_the_other_sources(tmp_path: Path) -> None:
    assert load(tmp_path, "policy = 'flag'", policy=None).policy is Policy.FLAG


def test_the_repository_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_REPOSITORY", "elsewhere")

    assert load_settings(None, {"repository": None}).repository == Path("elsewhere")


def test_a_model_has_its_own_settings_and_takes_the_rest_from_the_server(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "policy = 'monitor'\non_uncheckable = 'answer'\n"
        "[models.cats]\npolicy = 'flag'\n[models.'traffic signs']\non_uncheckable = 'refuse'",
    )

    assert [settings.policy_of(name) for name in ("cats", "traffic signs", "other")] == [
        *(Policy.FLAG, Policy.MONITOR, Policy.MONITOR),
    ]
    assert [settings.on_uncheckable_of(name) for name in ("cats", "traffic signs", "other")] == [
        *("answer", "refuse", "answer"),
    ]


def test_variables_and_file_may_each_say_a_part_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_MODELS__CATS__POLICY", "monitor")

    settings = load(tmp_path, "[models.cats]\npolicy = 'flag'\non_uncheckable = 'answer'")

    assert settings.models == {"cats": ModelSettings(policy="monitor", on_uncheckable="answer")}


def test_models_may_come_as_json_in_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_MODELS", '{"ResNet": {"policy": "flag"}}')

    assert load(tmp_path).policy_of("ResNet") is Policy.FLAG


def test_settings_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    settings = load(tmp_path)

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"port": "80x"},
            "setting 'port': Input should be a valid integer, unable to parse string as an integer, "
            "got '80x'",
        ),
        ({"port": "65536"}, "setting 'port': Input should be less than or equal to 65535, got '65536'"),
        (
            {"metrics_port": "-1"},
            "setting 'metrics_port': Input should be greater than or equal to 0, got '-1'",
        ),
        (
            {"policy": "block"},
            "setting 'policy': Input should be 'enforce', 'flag' or 'monitor', got 'block'",
        ),
        (
            {"on_uncheckable": "ignore"},
            "setting 'on_uncheckable': Input should be 'refuse' or 'answer', got 'ignore'",
        ),
        ({"device": "tpu"}, "setting 'device': Input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ({"threads": "-1"}, "setting 'threads': Input should be greater than or equal to 0, got '-1'"),
        ({"threads": "9999"}, "setting 'threads': Input should be less than or equal to 1024, got '9999'"),
        (
            {"max_batch_pairs": 0},
            "setting 'max_batch_pairs': Input should be greater than or equal to 1, got 0",
        ),
        (
            {"max_message_bytes": 2**31},
            "setting 'max_message_bytes': Input should be less than or equal to 2147483647, got 2147483648",
        ),
        (
            {"request_timeout_s": "inf"},
            "setting 'request_timeout_s': Input should be a finite number, got 'inf'",
        ),
        ({"drain_timeout_s": "0"}, "setting 'drain_timeout_s': Input should be greater than 0, got '0'"),
        (
            {"log_level": "loud"},
            "setting 'log_level': Input should be 'debug', 'info', 'warning' or 'error', got 'loud'",
        ),
        ({"log_format": "xml"}, "setting 'log_format': Input should be 'json' or 'text', got 'xml'"),
        ({"host": ""}, "setting 'host': String should have at least 1 character, got ''"),
        (
            {"max_request_rows": 65, "max_queue_rows": 64},
            "settings: expected max_request_rows to be at most max_queue_rows, got 65 and 64",
        ),
        (
            {"max_request_rows": 65, "max_client_rows": 64},
            "settings: expected max_request_rows to be at most max_client_rows, got 65 and 64",
        ),
        (
            {"client_header": "X-Client"},
            "setting 'client_header': String should match pattern '^[a-z0-9_.][a-z0-9_.-]{0,63}$', got "
            "'X-Client'",
        ),
        (
            {"port": "none"},
            "settings: expected a port or a socket, got port 'none' and no socket; set one",
        ),
        (
            {"port": "none", "socket": "/s", "tls_cert": "/c"},
            "settings: expected a port beside tls_cert, got 'none'; set port, or leave it out",
        ),
        (
            {"socket": "/s", "workers": 2},
            "settings: expected a port and no socket with 2 workers, which share a port and cannot share a "
            "socket; set workers = 1, or leave the socket out",
        ),
        (
            {"port": "x", "device": "tpu", "threads": "many"},
            "setting 'port': Input should be a valid integer, unable to parse string as an integer, got 'x' "
            "(and 2 more)",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_what_was_expected_and_what_came(
    tmp_path: Path, flags: dict[str, object], message: str
) -> None:
    assert refusal(tmp_path, **flags) == message


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("prot = 1", f"setting 'prot' is not known; known are {KNOWN}"),
        ("[model.cats]\npolicy = 'flag'", f"setting 'model' is not known; known are {KNOWN}"),
        (
            "[models.cats]\npolcy = 'flag'",
            "setting 'models.cats.polcy' is not known; known are policy, on_uncheckable, sampling, "
            "full_check_share, second_opinions, precision, cuda_graphs, guarded, encoded_images, upstream, "
            "upstream_model, upstream_version, upstream_load, upstream_check, upstream_max_batch_size, "
            "upstream_tls_ca, upstream_tls_cert, upstream_tls_key",
        ),
        (
            "[models.cats.encoded_images]\nmode = 'RGB'",
            "setting 'models.cats.encoded_images.mode' is not known; known are input, resize, crop, "
            "scale, mean, std, colour, orientation",
        ),
        (
            "[models.cats.encoded_images]\ninput = 'jpeg'",
            "setting 'models.cats': Value error, expected upstream beside encoded_images.input, got none; a "
            "model that runs here takes encoded images at its own input, got {'encoded_images': {'input': "
            "'jpeg'}}",
        ),
        (
            "[models.cats.encoded_images]\norientation = 'up'",
            "setting 'models.cats.encoded_images.orientation': Input should be 'ignore' or 'apply', got 'up'",
        ),
        (
            "[models.cats]\nupstream = 'h:1'\nupstream_check = 'upstream'\nencoded_images = {}",
            "setting 'models.cats': Value error, expected upstream_check = \"local\" beside encoded_images, "
            'got "upstream"; blends are tensors, which a server that takes encoded images cannot be sent, '
            "got {'upstream': 'h:1', 'upstream_check': 'upstream', 'encoded_images': {}}",
        ),
        (
            "[models.cats]\nupstream_check = 'upstream'",
            "setting 'models.cats': Value error, expected upstream beside upstream_check, got none; say "
            "which server it is about, got {'upstream_check': 'upstream'}",
        ),
        (
            "[models.cats]\nupstream = 'there:1'\nupstream_tls_cert = 'c'\nupstream_tls_ca = 'a'",
            "setting 'models.cats': Value error, expected upstream_tls_cert and upstream_tls_key both or "
            "neither, got one of them, got {'upstream': 'there:1', 'upstream_tls_cert': 'c', "
            "'upstream_tls_ca': 'a'}",
        ),
        (
            "[models.cats]\nupstream = 'there:1'\nupstream_tls_cert = 'c'\nupstream_tls_key = 'k'",
            "setting 'models.cats': Value error, expected upstream_tls_ca beside upstream_tls_cert, got "
            "none; name who signs there, got {'upstream': 'there:1', 'upstream_tls_cert': 'c', "
            "'upstream_tls_key': 'k'}",
        ),
        (
            "[models.cats]\nupstream = 'http://there:8001/v2'",
            "setting 'models.cats.upstream': Value error, expected host:port or unix:/path, got "
            "'http://there:8001/v2'",
        ),
        (
            "[models.cats]\npolicy = 'off'",
            "setting 'models.cats.policy': Input should be 'enforce', 'flag' or 'monitor', got 'off'",
        ),
        ("models = 3", "setting 'models': Input should be a valid dictionary, got 3"),
        (
            "port = 'x'",
            "setting 'port': Input should be a valid integer, unable to parse string as an integer, got 'x'",
        ),
    ],
)
def test_a_wrong_key_or_value_in_the_file_is_named(tmp_path: Path, toml: str, message: str) -> None:
    assert refusal(tmp_path, toml) == message


def test_a_flag_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, prot="1") == f"setting 'prot' is not known; known are {KNOWN}"


def test_a_misspelt_name_is_told_before_the_setting_that_is_missing_for_it(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text("repositry = 'models'\nport = 'x'\n")
    with pytest.raises(SettingsError, match=r"^setting 'repositry' is not known; .*\(and 2 more\)$"):
        load_settings(file, {})


def test_a_missing_repository_says_the_three_ways_to_give_it() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(None, {})

    assert str(refused.value) == (
        "setting 'repository' is missing; give --repository, GUARD_REPOSITORY, or repository in the TOML file"
    )


def test_a_wrong_variable_is_refused_like_a_wrong_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_POLICY", "off")

    assert refusal(tmp_path) == (
        "setting 'policy': Input should be 'enforce', 'flag' or 'monitor', got 'off'"
    )


def test_a_variable_that_is_no_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_MODELS", "{cats")

    message = refusal(tmp_path)

    assert message.startswith("cannot read the settings (")
    assert '"models"' in message
    assert message.endswith("; check the GUARD_* variables")


def test_a_file_that_is_no_toml_is_named_with_the_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, "port = 1\npolicy flag")

    assert message.startswith("cannot read the settings (")
    assert "line 2" in message
    assert message.endswith(f"; check {tmp_path}/guard.toml and the GUARD_* variables")


@pytest.mark.parametrize("name", ["nope.toml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path / name, {"repository": "models"})

    assert str(refused.value) == (
        f"settings file {tmp_path / name} is not there; give the path of a TOML file with --config"
    )


def test_a_file_of_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guard.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(SettingsError, match="cannot read the settings"):
        load_settings(tmp_path / "guard.toml", {"repository": "models"})
