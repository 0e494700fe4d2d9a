"""What travels in the wheel, and that it works where no source tree is."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what the image copies, so that the tree stays as it is.

    The build environment needs setuptools from the package index; without a network this fails.
    """
    source = tmp_path_factory.mktemp("source")
    for line in re.findall(r"(?m)^COPY (.+)$", (ROOT / "configs/deploy/Dockerfile").read_text()):
        for name in line.split()[:-1]:
            run("cp", "-r", ROOT / name, source, cwd=source)
    out = tmp_path_factory.mktemp("wheel")
    builder = out / "builder"
    venv.create(builder, with_pip=True)
    pip = (builder / "bin" / "python", "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip, source, "-w", out, cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that borrows the dependencies of this one."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    theirs = [sysconfig.get_path("purelib"), *sys.path]
    borrowed = dict.fromkeys(p for p in theirs if p.endswith("site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", "utf-8")
    return home / "bin" / "carefl-secure"


@pytest.mark.slow
def test_the_wheel_holds_every_shipped_file_and_no_tests(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "threat_models"):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"carefl_secure/shipped/{path.relative_to(ROOT).as_posix()}" in inside
    assert "carefl_secure/py.typed" in inside
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in inside)


@pytest.mark.slow
def test_an_installed_program_finds_its_files_from_any_folder(program: Path, tmp_path: Path) -> None:
    where = "import carefl_secure; print(carefl_secure.__file__)"
    used = run(program.with_name("python"), "-c", where, cwd=tmp_path)
    assert Path(used.strip()).is_relative_to(program.parents[1])
    listed = run(program, "threat-model", "list", "--json", cwd=tmp_path)
    assert "active-server" in listed
    resolved = (
        "from pathlib import Path; from carefl_secure.config import load_config;"
        "print(load_config(Path('carefl:tasks/emotic_smolvlm2_256m.yaml')).run.name)"
    )
    assert run(program.with_name("python"), "-c", resolved, cwd=tmp_path).strip() == "emotic-256m"


@pytest.mark.slow
def test_the_wheel_alone_trains_reports_watches_and_predicts(program: Path, tmp_path: Path) -> None:
    """Templates, styles, scripts and the embedded model travel too."""
    small = ["data.records=60", "privacy.delta=1e-2", "simulation.dropout=0", "run.name=small"]
    words = [word for one in small for word in ("--set", one)]
    run(program, "train", "--rounds", "1", "--clients", "3", "--yes", "--quiet", *words, cwd=tmp_path)
    run(program, "report", "runs/small", "--dpia", cwd=tmp_path)
    run(program, "evaluate", "runs/small", "--quiet", cwd=tmp_path)
    for name in (
        "report/report.html",
        "report/dpia-public.html",
        "report/registry.yaml",
        "evaluation/evaluation.html",
    ):
        assert (tmp_path / "runs" / "small" / name).stat().st_size > 1000, name
    assert '"small"' in run(program, "runs", "list", "--json", cwd=tmp_path)
    served = "from pathlib import Path; from carefl_secure.report.watch import watching; watching(Path('x'), 0, dict)"
    run(program.with_name("python"), "-c", served, cwd=tmp_path)
    image = "from PIL import Image; Image.new('RGB', (64, 64), (200, 90, 30)).save('one.png')"
    run(program.with_name("python"), "-c", image, cwd=tmp_path)
    assert "one.png: " in run(program, "predict", "runs/small", "one.png", "--quiet", cwd=tmp_path)
