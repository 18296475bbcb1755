"""What `make gpu-check` says where there is no GPU, and the page that it writes. Its whole way is in tests/ray."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from tests.gpu import __main__ as check
from tests.gpu import machine
from tests.gpu.report import markdown


@pytest.mark.parametrize(
    ("cuda", "driver", "told"),
    [
        (None, None, "is a build without CUDA"),
        ("12.8", None, "no NVIDIA driver"),
        ("12.8", "/usr/bin/nvidia-smi", "compare nvidia-smi"),
    ],
)
def test_what_is_missing_is_one_line(cuda, driver, told, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.torch, "version", SimpleNamespace(cuda=cuda, hip=None))
    monkeypatch.setattr(shutil, "which", lambda _: driver)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpu-check needs a GPU: ")
    assert told in line


def test_the_page_holds_the_machine_the_figures_and_the_seconds(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    page = markdown([("prefix", "12", "eager 6", "2.00", "-")], {"search": 3.2})
    assert f"torch {version('torch')}" in page
    assert "| prefix | 12 | eager 6 | 2.00 | - |" in page
    assert "| search | 3 |" in page
