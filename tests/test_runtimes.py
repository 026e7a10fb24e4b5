"""Every runtime reproduces the probe; damaged or missing files are refused, never worked around."""

import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import copy as duplicate
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from smearcount import cuda, runtimes
from smearcount.cards import Model, find_model
from smearcount.config import Settings
from smearcount.errors import ModelError, RuntimeMissingError, UsageError
from smearcount.patches import to_batch
from smearcount.probe import PROBE_SCORE, probe_error, probe_errors
from smearcount.runtimes import RuntimeChoice, TorchRuntime, make_runtime, model_for, openvino
from smearcount.training.packaging import update_card

DETECTOR = Settings().detector


@pytest.fixture(scope="module")
def model() -> Model:
    return find_model(DETECTOR)


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Model:
    from smearcount.training.packaging import export_model

    return Model(export_model(DETECTOR, "onnx", tmp_path_factory.mktemp("exported")))


@pytest.mark.filterwarnings("ignore")
def test_every_runtime_reproduces_the_probe(with_onnx: Model) -> None:
    errors = probe_errors(with_onnx, ("openvino", "onnx", "torch"))
    assert len(errors) == 3
    assert all(error.fits(with_onnx.card) for error in errors.values())


def test_a_wrong_answer_to_the_probe_is_refused(model: Model, tmp_path: Path) -> None:
    folder = copy(model, tmp_path)
    card = (folder / "card.yaml").read_text()
    tolerance = model.card.probe_tolerance
    assert f"probe_tolerance: {tolerance}" in card
    (folder / "card.yaml").write_text(card.replace(f"probe_tolerance: {tolerance}", "probe_tolerance: 1.0e-12"))
    with pytest.raises(ModelError, match="differs from the probe"):
        probe_errors(Model(folder), ("openvino",))


@pytest.mark.parametrize("name", ["model.bin", "model.xml"])
def test_a_damaged_weight_file_is_refused(model: Model, tmp_path: Path, name: str) -> None:
    folder = copy(model, tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=f"{name}.*changed or damaged"):
        make_runtime(Model(folder), RuntimeChoice("openvino"))


def test_a_runtime_without_files_says_how_to_make_them(model: Model) -> None:
    with pytest.raises(RuntimeMissingError, match=f"smearcount export {DETECTOR} --to onnx"):
        make_runtime(model, RuntimeChoice("onnx"))


def test_a_missing_library_is_an_error_with_its_install_command(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeMissingError, match="pip install openvino"):
        make_runtime(model, RuntimeChoice("openvino"))


def test_cuda_with_a_cpu_runtime_is_refused(model: Model) -> None:
    with pytest.raises(RuntimeMissingError):
        make_runtime(model, RuntimeChoice("openvino", "cuda"))


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize("sees", [True, False, None])
def test_a_graphics_card_is_taken_where_pytorch_sees_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, driver: bool, sees: bool | None
) -> None:
    """Without a driver PyTorch is not even loaded; without PyTorch there is still OpenVINO."""
    (tmp_path / "dxg").touch()
    place = str(tmp_path / ("dxg" if driver else "none"))
    monkeypatch.setattr(cuda, "_CUDA_DRIVERS", (str(tmp_path / "other"), place))
    torch = None if sees is None else SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: sees))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert runtimes._device(RuntimeChoice()) == ("cuda" if driver and sees else "cpu")
    assert runtimes._device(RuntimeChoice("openvino")) == runtimes._device(RuntimeChoice(device="cpu")) == "cpu"
    if sees:
        assert runtimes._device(RuntimeChoice(device="cuda")) == "cuda"
    else:
        with pytest.raises(RuntimeMissingError, match="not installed" if sees is None else "no CUDA device"):
            runtimes._device(RuntimeChoice(device="cuda"))


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_precision_that_a_runtime_lacks_is_wrong_usage(model: Model, runtime: str) -> None:
    with pytest.raises(UsageError, match=f"bf16.*not with {runtime}"):
        make_runtime(model, RuntimeChoice(runtime, "cpu", "bf16"))


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_a_batch_size_that_a_runtime_lacks_is_wrong_usage(model: Model, runtime: str) -> None:
    with pytest.raises(UsageError, match=f"not with {runtime}; leave --batch-size out"):
        make_runtime(model, RuntimeChoice(runtime, "cpu", batch_size=2))


@pytest.mark.parametrize("word", [{"runtime": "tensorflow"}, {"device": "tpu"}, {"precision": "f64"}])
def test_unknown_words_are_refused(word: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        RuntimeChoice(**word)


def test_any_multiple_of_the_stride_is_taken(model: Model) -> None:
    run, description = make_runtime(model, RuntimeChoice("openvino"))
    assert description == f"openvino cpu {model.card.precision}"
    for height, width in ((64, 64), (160, 96), (48, 400)):
        output = run(np.zeros((1, 3, height, width), np.float32))[0]
        anchors = sum(height * width // stride**2 for stride in (8, 16))
        assert output.shape == (1, 4 + len(model.card.codes), anchors)


@pytest.mark.parametrize(("name", "precision"), [("openvino", "f32"), ("openvino", "bf16"), ("torch", "f32")])
def test_grey_levels_give_the_bits_of_floats(model: Model, name: str, precision: str) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 80)).astype(np.uint8)
    choice = RuntimeChoice(name, "cpu", precision, 1)
    floats, _ = make_runtime(model, choice)
    pixels, _ = make_runtime(model, replace(choice, levels="planes"))
    expected = floats(planes.astype(np.float32) * np.float32(1 / 255))[0]
    assert np.array_equal(pixels(planes)[0], expected)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_views_are_normalised_as_the_card_says(model: Model, name: str) -> None:
    views = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3)).astype(np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)
    other = duplicate(model)
    other.card = model.card.model_copy(update={"mean": mean, "std": std})
    choice = RuntimeChoice(name, "cpu", "f32", 1, levels="views")
    levels, _ = make_runtime(other, choice)
    floats, _ = make_runtime(model, replace(choice, levels=""))
    expected = floats(to_batch(list(views), mean, std))[0]
    np.testing.assert_allclose(levels(views)[0], expected, atol=1e-3, rtol=1e-4)
    assert np.abs(floats(to_batch(list(views), (0.0,) * 3, (1.0,) * 3))[0] - expected).max() > 0.1


@pytest.mark.parametrize("precision", ["auto", "f32"])
def test_streams_give_the_bits_of_single_calls(precision: str) -> None:
    """Of several threads at a time, with inputs of several shapes."""
    choice = RuntimeChoice("openvino", "cpu", precision, 2, "planes")
    one, _ = make_runtime(model_for(DETECTOR, choice), choice)
    several, at_once = one.streams
    assert (at_once, several.input_dtype) == (min(2, os.cpu_count() or 1), np.uint8)
    assert one.streams[0] is several
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (1, 3, 64 + 32 * (n % 3), 96)).astype(np.uint8) for n in range(24)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(several, batches))
    for batch, (answer,) in zip(batches, found, strict=True):
        assert np.array_equal(answer, one(batch)[0])
    with pytest.raises(ValueError, match="expected uint8, got float32"):
        several(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_with_one_thread_or_another_library_there_are_no_streams(model: Model, name: str) -> None:
    run, _ = make_runtime(model, RuntimeChoice(name, "cpu", "f32", 1))
    assert run.streams == (run, 1)


@pytest.mark.parametrize("name", [DETECTOR, "red-cells", "white-cells"])
def test_half_precision_reproduces_the_probe(name: str) -> None:
    """What a graphics card computes, here on the processor."""
    found = find_model(name)
    probe = np.load(io.BytesIO(found.read("probe.npz")), allow_pickle=False)
    answer = TorchRuntime(found, threads=1, half=True)(probe["pixels"].astype(np.float32))[0]
    worst = probe_error(found.card, answer, probe["expected"])
    assert worst.value > 0
    assert worst.fits(found.card)


def test_half_precision_finds_a_far_cell_where_it_is(model: Model) -> None:
    """Beyond 512 px half precision has steps of half a pixel, and of a whole one beyond 1024."""
    sample = Path(__file__).parents[1] / "sample_smears" / "normal.jpg"
    field = cv2.imread(str(sample))[:352, :352, ::-1]
    wide = np.full((1, 3, 352, 1408), 214, np.uint8)
    wide[0, :, :, -352:] = field.transpose(2, 0, 1)
    exact, half = (TorchRuntime(model, threads=1, levels="planes", half=half)(wide)[0] for half in (False, True))
    worst = probe_error(model.card, half, exact)
    assert worst.value < 0.1
    assert (exact[0, 0, exact[0, 4] > 0.5] > 1056).sum() > 20


@pytest.mark.parametrize(("precision", "expected"), [("auto", "f16"), ("f32", "f32")])
def test_a_graphics_card_takes_half_precision_unless_told(
    model: Model, monkeypatch: pytest.MonkeyPatch, precision: str, expected: str
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(runtimes, "_device", lambda _: "cuda")
    monkeypatch.setattr(runtimes, "TorchRuntime", lambda *_, **words: made.append(words))
    assert make_runtime(model, RuntimeChoice(precision=precision))[1] == f"torch cuda {expected}"
    assert made == [{"half": expected == "f16", "batch_size": 4}]


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_batch_of_another_type_is_refused(model: Model, name: str) -> None:
    pixels, _ = make_runtime(model, RuntimeChoice(name, "cpu", levels="planes"))
    with pytest.raises(ValueError, match="expected uint8, got float32"):
        pixels(np.zeros((1, 3, 64, 64), np.float32))
    floats, _ = make_runtime(model, RuntimeChoice(name, "cpu"))
    with pytest.raises(ValueError, match="expected float32, got uint8"):
        floats(np.zeros((1, 3, 64, 64), np.uint8))


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_threads_that_share_a_runtime_get_the_answers_to_their_own_input(model: Model, name: str) -> None:
    """Of two shapes with the same number of places, so that nothing fails where they are exchanged."""
    run, _ = make_runtime(model, RuntimeChoice(name, "cpu", "f32", 1))
    wide = np.random.default_rng(0).random((1, 3, 48, 96), np.float32)
    inputs = [wide, np.ascontiguousarray(wide.swapaxes(2, 3))] * 40
    expected = [run(each)[0] for each in inputs[:2]] * 40
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, inputs))
    assert [np.array_equal(one[0], other) for one, other in zip(found, expected, strict=True)] == [True] * 80


def copy(model: Model, target: Path) -> Path:
    return Path(shutil.copytree(model.folder, target / model.card.id))


@pytest.fixture
def with_int8(model: Model, tmp_path: Path) -> Path:
    """A folder of models: the shipped detector, and a version of it that says it is INT8."""
    copy(model, tmp_path)
    shutil.copytree(model.folder, tmp_path / f"{model.card.id}-int8")
    update_card(tmp_path / f"{model.card.id}-int8", id=f"{model.card.id}-int8", precision="int8")
    return tmp_path


@pytest.mark.parametrize(
    ("able", "choice", "expected"),
    [
        (True, RuntimeChoice(device="cpu"), "-int8"),
        (True, RuntimeChoice("openvino"), "-int8"),
        (False, RuntimeChoice(device="cpu"), ""),
        (True, RuntimeChoice(device="cpu", precision="f32"), ""),
        (True, RuntimeChoice(device="cpu", precision="bf16"), ""),
        (True, RuntimeChoice("onnx"), ""),
        (True, RuntimeChoice("torch", "cpu"), ""),
    ],
)
def test_the_int8_version_is_meant_where_it_can_run_and_nothing_else_was_asked_for(
    with_int8: Path, model: Model, monkeypatch: pytest.MonkeyPatch, able: bool, choice: RuntimeChoice, expected: str
) -> None:
    monkeypatch.setattr(runtimes, "has_int8", lambda: able)
    assert model_for(model.card.id, choice, with_int8).card.id == model.card.id + expected


def test_a_model_without_an_int8_version_is_itself(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runtimes, "has_int8", lambda: True)
    alone = copy(model, tmp_path)
    assert model_for(str(alone), RuntimeChoice()).folder == alone
    with pytest.raises(ModelError, match="no such model"):
        model_for("absent", RuntimeChoice(), tmp_path)


@pytest.mark.parametrize("name", ["cells-yolo11-p4", "cells-yolo11-p4-int8"])
def test_the_probe_of_a_detector_holds_confident_cells_of_every_kind(name: str) -> None:
    model = find_model(name)
    expected = np.load(io.BytesIO(model.read("probe.npz")))["expected"]
    assert expected[0, 4:].max(axis=1).min() > 0.8
    assert probe_error(model.card, expected, expected).fits(model.card)
    blind, shifted = expected.copy(), expected.copy()
    blind[:, 4:] = 0
    shifted[:, :2] += 2
    for answer in (blind, shifted):
        assert not probe_error(model.card, answer, expected).fits(model.card)
    faint = expected.copy()
    faint[:, :4, expected[0, 4:].max(axis=0) < PROBE_SCORE] += 50
    assert probe_error(model.card, faint, expected).fits(model.card)


STOPPED = """
import os, signal, sys
from smearcount.cards import find_model
from smearcount.runtimes import RuntimeChoice, make_runtime

def load():
    return make_runtime(find_model("red-cells"), RuntimeChoice("openvino", "cpu", "f32", 1))[0]

first, second = load(), load()
del first
del second
load()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_process_that_loaded_networks_and_dropped_them_can_be_stopped() -> None:
    """Where the processor has AMX, cores of OpenVINO that do not end in turn leave no stack for signals."""
    done = subprocess.run([sys.executable, "-c", STOPPED], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize(
    ("instructions", "of_the_user", "amx", "allowed"),
    [
        ({"avx512_vnni", "amx_tile"}, {}, False, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}),
        ({"avx512_vnni", "amx_tile"}, {}, True, {}),
        ({"avx512_vnni", "amx_tile"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        ({"avx512_vnni", "amx_tile"}, {"DNNL_MAX_CPU_ISA": "AVX2"}, False, {"DNNL_MAX_CPU_ISA": "AVX2"}),
        ({"avx512_vnni"}, {}, False, {}),
        (set(), {}, False, {}),
    ],
)
def test_networks_do_without_amx_but_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
    instructions: set[str],
    of_the_user: dict[str, str],
    amx: bool,
    allowed: dict[str, str],
) -> None:
    """What oneDNN may use is told while it looks, to nobody else, and not against the user."""

    def told() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.endswith("_MAX_CPU_ISA")}

    for name in told():
        monkeypatch.delenv(name)
    for name, value in of_the_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(openvino, "_instructions", lambda: frozenset(instructions))
    monkeypatch.setattr(openvino, "_core", told)
    assert openvino.openvino_core(amx=amx) == allowed
    assert told() == of_the_user


@pytest.mark.skipif("amx_tile" not in openvino._instructions(), reason="this processor has no AMX")
def test_kernels_without_amx_answer_with_the_same_bits() -> None:
    """In processes of their own, since oneDNN looks once what it may use."""
    code = (
        "import numpy as np\n"
        "from smearcount.config import Settings\n"
        "from smearcount.runtimes import RuntimeChoice, make_runtime, model_for\n"
        "choice = RuntimeChoice('openvino', 'cpu', 'auto', 1)\n"
        "run, named = make_runtime(model_for(Settings().detector, choice), choice)\n"
        "answer = run(np.random.default_rng(0).random((1, 3, 96, 128), np.float32))[0]\n"
        "kernels = [op.get_rt_info()['primitiveType'].value for op in run._compiled.get_runtime_model().get_ops()]\n"
        "print(named, any('amx' in kernel for kernel in kernels), answer.tobytes().hex())\n"
    )
    usual = {name: value for name, value in os.environ.items() if not name.endswith("_MAX_CPU_ISA")}
    without, with_amx = (
        subprocess.run([sys.executable, "-c", code], env=each, capture_output=True, text=True, check=True).stdout
        for each in (usual, {**usual, "ONEDNN_MAX_CPU_ISA": "ALL"})
    )
    assert without.startswith("openvino cpu int8 False ")
    assert with_amx.startswith("openvino cpu int8 True ")
    assert without.split()[-1] == with_amx.split()[-1]
