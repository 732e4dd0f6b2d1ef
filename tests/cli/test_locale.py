"""A terminal that knows only ASCII or Latin-1: every verb prints, as well as it can, and JSON stays JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tauon.cli import main
from tauon.cli.main import verbs
from toy import table_recipe, text_recipe

WORDS = "naïve 中文 … λ – 😀 "


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *args: str | Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command whose streams take that encoding alone."""
    out, err = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as m:
        m.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, errors="strict"))
        m.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding, errors="strict"))
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        sys.stdout.flush()
        sys.stderr.flush()
        assert isinstance(ended.value.code, int)
        wide = "utf-8" if encoding == "ascii" else encoding  # click takes ASCII for a mistake, and writes UTF-8 there
        return ended.value.code, out.getvalue().decode(wide), err.getvalue().decode(wide)


@pytest.mark.parametrize("encoding", [pytest.param("ascii", marks=pytest.mark.slow), "latin-1"])
def test_every_verb_prints_in_a_locale_without_utf8(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def tauon(*args: str | Path, code: int = 0) -> str:
        ended = printed(monkeypatch, encoding, *args)
        assert ended[0] == code, ended
        return ended[1] + ended[2]

    for verb in verbs():
        tauon(verb, "--help")
    recipe = text_recipe(tmp_path, evaluate={"prompts": [WORDS]})
    (tmp_path / "text.txt").write_text(WORDS * 300, encoding="utf-8")
    tauon("run", recipe, "--root", "läufe 中")
    assert "toy" in tauon("runs", "list", "--root", "läufe 中")
    folder = Path("läufe 中/toy")
    for line in tauon("run", recipe, "name=json", "--root", "läufe 中", "--json").splitlines():
        json.loads(line)
    tauon("generate", folder, "--prompt", WORDS, "-n", "5")
    tauon("runs", "compare", folder, "läufe 中/json")
    tauon("report", folder)
    tauon("audit", folder, "--examples", "10")
    tauon("tune", recipe, "--lr-range", "--steps", "10")
    tauon("recipe", "show", recipe)
    tauon("recipe", "check", recipe)
    tauon("train", recipe, "--on", "slurm:2", "--dry-run")
    tauon("privacy", "epsilon", "--noise", "1.1", "--rate", "0.01", "--steps", "100")
    said = tauon("run", "中", code=2)
    assert "\\u4e2d" in said or "中" in said
    table_recipe(tmp_path / "t")
    (tmp_path / "d.csv").write_text("größe,x,y\n" + "".join(f"{i % 7},{i % 5},{'甲乙'[i % 2]}\n" for i in range(40)), encoding="utf-8")
    tauon("recipe", "new", "--from", "d.csv", "--label-from", "y")
    tauon("run", "d.yaml", "train.epochs=null", "train.steps=2")


def test_a_name_that_is_not_utf8_is_printed_in_a_utf8_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = printed(monkeypatch, "utf-8", "run", os.fsdecode(b"caf\xe9.yaml"))
    assert code == 2 and "caf\\udce9.yaml" in err


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}])
def test_a_process_of_its_own_in_such_a_locale(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "runs" / "中文").mkdir(parents=True)
    (tmp_path / "runs" / "中文" / "recipe.yaml").write_text("name: x")
    command = [sys.executable, "-c", "from tauon.cli import main; main()", "runs", "list"]
    done = subprocess.run(command, capture_output=True, env=os.environ | env, cwd=tmp_path)
    assert done.returncode == 0 and b"not trained" in done.stdout and done.stderr == b"", done
