"""The value of a secret variable in a setting: refused by every command, shown by none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ftsuite import cli
from ftsuite.__main__ import main
from ftsuite.errors import SECRET_VARIABLES

if TYPE_CHECKING:
    from pathlib import Path

VALUE = "x9secret-value0"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("variable", "argument", "setting"),
    [
        *((name, f"data.system=token {VALUE}", "data.system") for name in SECRET_VARIABLES),
        ("HF_TOKEN", f"study={VALUE}", "study"),
        ("WANDB_API_KEY", f"tracking.project={VALUE}", "tracking.project"),
        ("HF_TOKEN", f"+template.kwargs.deep={{{VALUE}: 1}}", "template.kwargs.deep"),
        ("HF_TOKEN", f"evals.tasks=[intent_choice,{VALUE}]", "evals.tasks"),
        ("HF_TOKEN", "data.system=${oc.env:HF_TOKEN}", "data.system"),
    ],
)
def test_every_command_refuses_and_names_the_setting(
    variable: str,
    argument: str,
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(variable, VALUE)
    commands = [
        (main, [argument]),
        (cli.main, ["plan", argument]),
        (cli.main, ["preview", argument]),
    ]
    if "oc.env" not in argument:
        commands.append((main, ["--cfg", "job", argument]))
    for command, arguments in commands:
        assert command(arguments) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"ftsuite: error: {setting}")
        assert f" = '<{variable}>': holds the value of {variable}" in said.err
        assert said.err.count("\n") == 1 and not said.out
        assert VALUE not in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "job", "--resolve"]])
def test_hydras_own_printing_is_redacted(
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A YAML file of the user's own, or the environment, holds the secret."""
    monkeypatch.setenv("HF_TOKEN", VALUE)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "leak.yaml").write_text(
        f"name: leak\nsystem: 'key {VALUE}'\ntest: '${{oc.env:HF_TOKEN}}'\n"
    )
    assert main([*flags, "--config-dir", "conf", "data=leak"]) == 0
    said = capsys.readouterr()
    assert "system: key <HF_TOKEN>" in said.out
    assert VALUE not in said.out + said.err
    assert main(["--config-dir", "conf", "data=leak"]) == 1
    assert "data.test = '<HF_TOKEN>': holds the value" in capsys.readouterr().err
