import errno
import json
import subprocess
import sys

import pytest

from raycnn import verbs
from raycnn.cli import main, run
from raycnn.progress import Progress

CONFIG = """
run: {name: trial, storage: STORAGE}
data: {source: /nowhere}
model: {name: reference/lenet, weights: none}
optim: {lr: 0.5}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("STORAGE", str(tmp_path / "runs")))
    return str(path)


def exit_of(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--optim.lr", "-1"], "optim.lr"),
        (["--optim.speed", "1"], "command line"),
        (["--train.workers", "3"], "train"),
        (["--model.unfreeze", "blocks..6"], "model.unfreeze"),
    ],
)
def test_a_refused_field_ends_with_one_line_its_path_and_code_2(config, arguments, where, capsys):
    code, out, err = exit_of(["train", config, *arguments, "--json"], capsys)
    assert code == 2
    assert json.loads(out)["error"]["where"] == where
    assert out.count("\n") == 1
    assert len(err.strip().splitlines()) == 1


def test_flags_beat_the_file_and_the_file_beats_defaults(config, monkeypatch):
    seen = []
    monkeypatch.setattr(verbs, "train", lambda settings, **_: seen.append(settings))
    run(["train", config], Progress())
    phases = "[{depth: 0, epochs: 2}, {depth: all, epochs: 1}]"
    run(["train", config, "--optim.lr", "1e-3", "--model.unfreeze", phases, "--run.name", "007"], Progress())
    assert (seen[0].optim.lr, seen[0].optim.name) == (0.5, "adamw")
    assert seen[1].optim.lr == 0.001
    assert seen[1].run.name == "007"
    assert [phase.depth for phase in seen[1].model.unfreeze] == [0, "all"]


def test_help_names_every_field_with_its_text(capsys):
    code, out, _ = exit_of(["train", "--help"], capsys)
    assert code == 0
    assert "--model.unfreeze" in out
    assert "Peak learning rate" in out


def test_no_such_verb(capsys):
    code, _, err = exit_of(["fly"], capsys)
    assert code == 2
    assert "fly" in err


def test_a_refusal_loads_nothing_heavy(config):
    script = (
        "import sys\nfrom raycnn.cli import main\n"
        f"try: main(['train', {config!r}, '--optim.lr', '-1'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'numpy', 'boto3', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_full_temporary_disk_ends_with_code_5_and_its_path(config, monkeypatch, capsys):
    def fill(settings, **_):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/part")

    monkeypatch.setattr(verbs, "predict", fill)
    code, out, _ = exit_of(["predict", config, "--json"], capsys)
    assert code == 5
    assert json.loads(out)["error"]["what"] == "no space left on the disk"
    assert json.loads(out)["error"]["where"] == "/tmp/part"
