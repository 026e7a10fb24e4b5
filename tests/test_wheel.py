"""A wheel installed away from the checkout is complete: models and settings travel inside it."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("smearcount-*.whl"))


def test_the_wheel_holds_models_and_settings(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {str(p.relative_to(ROOT)) for folder in ("weights", "configs") for p in (ROOT / folder).rglob("*.*")}
    assert inside
    assert {f"smearcount/{name}" for name in inside} <= names


def test_an_installed_wheel_analyses_a_smear(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "second"
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The first environment's packages are borrowed as a plain path, so that its editable install is not active there.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    picture = ROOT / "sample_smears" / "sparse.jpg"
    program = (
        "import smearcount, sys; from smearcount.cli import app; print(smearcount.__file__);"
        f"app(['analyze', {str(picture)!r}, '--out', 'results', '--quiet'], prog_name='smearcount')"
    )
    python = home / "bin" / "python"
    done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert (tmp_path / "results" / "sparse.json").is_file()
