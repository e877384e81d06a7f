"""The program ``ppl-med``: what is typed, what is printed, what is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_configs import classifier

from ppl_med.__main__ import COMMANDS, main
from ppl_med.runs.yaml_files import as_yaml


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cells.yaml"
    path.write_text(as_yaml(classifier()), encoding="utf-8")
    return path


def test_from_a_file_to_a_report(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["check", str(config), "--set", "model.classes=[a, b]", "--seed", "5"])
    assert "model and guide keep their contracts" in capsys.readouterr().out
    main(["fit", str(config), "--out", str(run), "--set", "fit.epochs=1", "--seed", "7", "--quiet"])
    said = capsys.readouterr()
    assert "Last epoch, nats per case: elbo" in said.out and said.err == ""
    assert f"ppl-med predict {run}" in said.out
    kept = (run / "config.yaml").read_text(encoding="utf-8")
    assert "seed: 7" in kept and "epochs: 1" in kept
    main(["predict", str(run), "--set", "predict.draws=3", "--quiet"])
    assert f"Wrote {run / 'posterior.nc'}: 3 draws, 10 cases" in capsys.readouterr().out
    main(["report", str(run / "posterior.nc"), "--title", "Cells"])
    assert (run / "report.html").exists()
    with pytest.raises(SystemExit, match=r"Calibration and test share 10 case\(s\)"):
        main(["report", str(run), "--calibration", str(run / "posterior.nc")])
    main(["export", str(run), str(tmp_path / "bundle")])
    assert (tmp_path / "bundle/docs/README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere.yaml"], r"^ppl-med: config nowhere\.yaml does not exist$"),
        (
            ["check", "{}", "--set", "fit.epoch=3"],
            r"^ppl-med: fit has no 'epoch'; did you mean 'ep",
        ),
        (["check", "{}", "--allow", "os"], r"^ppl-med: allow names os; name modules of your own"),
        (["predict", "nowhere"], "nowhere holds no finished run"),
        (["report", "nowhere.nc"], "no saved result"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], message: str, config: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main([one.format(config) for one in arguments])


def test_help_is_there_at_once_and_names_every_command() -> None:
    code = "import sys; from ppl_med.__main__ import main\ntry: main(['--help'])\n"
    code += "finally: print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.rstrip().endswith("False")
    assert all(name in shown for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
