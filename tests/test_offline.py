"""Nothing goes over the network at run time, and nothing heavy is imported before it is needed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import SAMPLES

GUARD = """
    import socket, sys
    opened = []
    original = socket.socket.connect
    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            opened.append(address)
            raise OSError("no network in this test")
        return original(self, address)
    socket.socket.connect = refuse
    socket.socket.connect_ex = refuse
    def no_lookup(host, *args, **kwargs):
        opened.append(host)
        raise OSError("no network in this test")
    socket.getaddrinfo = no_lookup
"""


def run(code: str, cwd: Path | None = None) -> str:
    program = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    loaded = run(
        """
        import sys, smearcount
        print(smearcount.__version__)
        print([name for name in ("torch", "ultralytics", "cv2", "pandas", "openvino", "numpy") if name in sys.modules])
        """
    )
    assert loaded.splitlines()[1] == "[]"


def test_help_imports_no_network_library() -> None:
    loaded = run(
        """
        import sys
        from typer.testing import CliRunner
        from smearcount.cli import app
        result = CliRunner().invoke(app, ["--help"])
        assert result.exit_code == 0, result.output
        assert "analyze" in result.output
        print([name for name in ("torch", "ultralytics", "openvino", "pandas") if name in sys.modules])
        """
    )
    assert loaded.strip() == "[]"


def test_analysis_needs_neither_torch_nor_network(tmp_path: Path) -> None:
    picture = SAMPLES / "sparse.jpg"
    out = run(
        GUARD
        + f"""
    from smearcount.cli import app
    from typer.testing import CliRunner
    result = CliRunner().invoke(app, ["analyze", {str(picture)!r}, "--out", {str(tmp_path)!r}, "--quiet"])
    assert result.exit_code == 0, result.output
    print([name for name in ("torch", "ultralytics") if name in sys.modules], opened)
    """
    )
    assert out.strip().endswith("[] []")
    assert (tmp_path / "sparse.overlay.jpg").is_file()


def test_pytorch_runtime_opens_no_connection() -> None:
    out = run(
        GUARD
        + """
    import warnings
    warnings.simplefilter("ignore")
    from smearcount.cards import find_model
    from smearcount.config import Settings
    from smearcount.probe import probe_errors
    probe_errors(find_model(Settings().detector), ("torch",))
    print("opened", opened)
    """
    )
    assert out.strip().endswith("opened []")


def test_no_child_process_calls_home(tmp_path: Path) -> None:
    """The whole process tree under a tracer of system calls: no socket of the internet family connects."""
    tracer = pytest.importorskip("shutil").which("strace")
    if tracer is None:
        pytest.skip("strace is not installed: the children of a process can't be watched")
    log = tmp_path / "calls"
    command = [tracer, "-f", "-qq", "-e", "trace=connect", "-o", str(log)]
    command += [sys.executable, "-m", "smearcount", "analyze", str(SAMPLES / "sparse.jpg"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("tracing is not permitted here")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in log.read_text()
