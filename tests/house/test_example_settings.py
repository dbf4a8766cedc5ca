"""deploy/guard.example.toml names every setting with its default, and every flag is a setting."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

from guard.cli import Serve
from guard.model_settings import EncodedImages, ModelSettings
from guard.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "guard.example.toml"
SETTING = re.compile(r"# ((?:[a-z_]+ = .+)|(?:\[models\.\w+\]))")


def uncommented(text: str) -> str:
    """Return the file as it is when every setting in it is taken out of its comment."""
    return "\n".join(match[1] for line in text.splitlines() if (match := SETTING.fullmatch(line)))


def example() -> dict[str, object]:
    return tomllib.loads(uncommented(EXAMPLE.read_text()))


def test_the_example_as_it_stands_changes_nothing() -> None:
    assert tomllib.loads(EXAMPLE.read_text()) == {}
    with_example, without = (load_settings(config, {"repository": "r"}) for config in (EXAMPLE, None))
    assert with_example.model_dump() == without.model_dump()


def test_the_example_has_every_setting_in_the_order_of_the_settings_and_no_other() -> None:
    assert list(example()) == list(Settings.model_fields)


def test_every_value_of_the_example_is_the_default() -> None:
    shown = example()
    defaults = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if not field.is_required() and name != "models" and field.default is not None
    }

    assert {name: shown[name] for name in defaults} == defaults
    without = {name for name, field in Settings.model_fields.items() if field.default is None}
    assert without <= set(shown)  # what is off by default is shown with a value that one might give
    assert {name for name, field in Settings.model_fields.items() if field.is_required()} == {"repository"}


def test_the_examples_model_table_has_every_setting_of_a_model_and_parses(tmp_path: Path) -> None:
    (tmp_path / "guard.toml").write_text(uncommented(EXAMPLE.read_text()))

    settings = load_settings(tmp_path / "guard.toml", {})

    [(name, shown)] = example()["models"].items()  # type: ignore[attr-defined]
    assert list(shown) == list(ModelSettings.model_fields)
    assert settings.models[name] == ModelSettings(
        policy="flag",
        on_uncheckable="answer",
        sampling=1.0,
        full_check_share=0.01,
        second_opinions="flagged",
        precision="exact",
        cuda_graphs=False,
        guarded=True,
        encoded_images=EncodedImages(
            resize=(256,), crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        upstream="127.0.0.1:8101",
        upstream_model="signs",
        upstream_version="same",
        upstream_tls_ca="/run/secrets/model-server-ca.crt",
        upstream_tls_cert="/run/secrets/guard.crt",
        upstream_tls_key="/run/secrets/guard.key",
    )
    assert (settings.policy_of(name).value, settings.policy_of("other").value) == ("flag", "enforce")


def test_a_setting_left_out_of_the_example_would_be_found() -> None:
    text = EXAMPLE.read_text().replace("# threads = 0", "")

    assert "threads" not in tomllib.loads(uncommented(text))
    assert "threads" in example()


def test_every_flag_of_serve_is_a_setting() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    Serve().add_arguments(parser)

    flags = {action.dest: action.option_strings for action in parser._actions}

    assert set(flags) - {"config"} <= set(Settings.model_fields)
    assert all(flags[name] == ["--" + name.replace("_", "-")] for name in flags)
    assert {"config", "repository", "port", "metrics_port", "policy"} <= set(flags)


def test_the_help_of_each_flag_tells_the_default_of_its_setting() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    Serve().add_arguments(parser)

    told = {
        action.dest: match[1]
        for action in parser._actions
        if (match := re.search(r"\(default (\S+)\)", action.help or ""))
    }

    assert told == {
        name: str(getattr(Settings.model_fields[name].default, "value", Settings.model_fields[name].default))
        for name in told
    }
    assert len(told) == 9
