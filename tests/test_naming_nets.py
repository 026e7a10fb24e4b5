"""Every backbone under both heads: shapes, torchvision's answers, freezing, statistics, weights from files, export."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from smearcount.errors import ModelError
from smearcount.judging import heat_maps
from smearcount.naming_heads import BACKBONES, AverageAndMax, NetSpec
from smearcount.naming_nets import CellNet, build_net, load_pretrained, recalibrate
from smearcount.offline import quiet_openvino

EMBEDDING = {
    **{"resnet18": 512, "resnet34": 512, "resnet50": 2048, "alexnet": 256, "vgg16": 512, "vgg19": 512},
    **{"densenet121": 1024, "densenet169": 1664, "mobilenet_v2": 1280, "mobilenet_v3_small": 576},
    **{"mobilenet_v3_large": 960, "efficientnet_b0": 1280, "lenet5": 84, "stack150": 512},
}
SMALL = ("lenet5", "stack150")
CODES = 5


def make(backbone: str, head: str = "plain", input_px: int = 32, **values: Any) -> CellNet:
    torch.manual_seed(7)
    spec = {"backbone": backbone, "head": head, "codes": CODES, "input_px": input_px, **values}
    return build_net(NetSpec.model_validate(spec))


def pictures(n: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def shake(net: nn.Module) -> None:
    """Weights, biases and statistics that are all different, of a size that keeps signals alive."""
    torch.manual_seed(11)
    for name, value in net.state_dict().items():
        if value.ndim > 1:
            nn.init.kaiming_normal_(value)
        elif name.endswith(("weight", "running_var")):
            nn.init.uniform_(value, 0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            nn.init.normal_(value, 0, 0.1)


def torchvision_net(backbone: str) -> nn.Module:
    """torchvision's own network that ends in the average over all places, with shaken weights."""
    with torch.device("meta"):
        net: Any = models.get_model(backbone, weights=None)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    setattr(net, "fc" if backbone.startswith("resnet") else "classifier", nn.Identity())
    net.to_empty(device="cpu")
    shake(net)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return net.eval()


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


@pytest.fixture(scope="module", params=BACKBONES)
def net(request: pytest.FixtureRequest) -> CellNet:
    made = make(request.param).eval()
    shake(made)
    return made


def test_the_list_of_backbones_is_complete() -> None:
    assert set(BACKBONES) == set(EMBEDDING)


def test_logits_and_features_have_their_shapes(net: CellNet) -> None:
    length = EMBEDDING[net.spec.backbone]
    assert net.embedding == length
    for side in (32,) if net.spec.has_dense_layers else (32, 45, 64):
        with torch.no_grad():
            logits, features = net(pictures(2, side))
        assert logits.shape == (2, CODES)
        assert features.shape == (2, length)
        assert torch.isfinite(logits).all()
        with torch.no_grad():
            assert torch.equal(net.head.decide(features), logits)
        assert not torch.allclose(logits[0], logits[1], rtol=1e-6, atol=0)


def test_groups_and_head_are_every_parameter_once_in_order(net: CellNet) -> None:
    groups = net.body_groups()
    assert (2 if net.spec.backbone in SMALL else 5) <= len(groups) <= 8
    assert all(groups)
    parts = [weight for group in groups for weight in group] + net.head_parameters()
    assert [id(weight) for weight in parts] == [id(weight) for weight in net.parameters()]


def test_the_last_spatial_layer_has_places_and_gradients(net: CellNet) -> None:
    kept: list[Tensor] = []
    hook = net.spatial_layers[-1].register_forward_hook(lambda layer, inputs, output: kept.append(output))
    logits, _ = net(pictures(1, 32))
    hook.remove()
    channels = {"lenet5": 16, "stack150": 128}.get(net.spec.backbone, net.embedding)
    assert kept[0].ndim == 4
    assert kept[0].shape[1] == channels
    (slope,) = torch.autograd.grad(logits[0, 0], kept[0])
    assert float(slope.abs().max()) > 0


class Opposite(nn.Module):
    """Says of each code what a network says, with the other sign."""

    def __init__(self, net: CellNet) -> None:
        super().__init__()
        self.net, self.spatial_layers = net, net.spatial_layers

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.net(batch)
        return -logits, features


def test_every_network_has_heat_maps(net: CellNet) -> None:
    side = 32 if net.spec.has_dense_layers else 64
    batch = pictures(2, side).numpy()
    heat = heat_maps(net, batch, np.array([0, 1]))
    assert heat.shape == (2, side, side)
    assert np.isfinite(heat).all()
    # Of two codes that are each other's opposite, something speaks for one of them at least.
    against = heat_maps(Opposite(net), batch, np.array([0, 1]))
    assert np.maximum(heat, against).max(axis=(1, 2)) == pytest.approx(1)
    turned = heat_maps(net, batch[..., ::-1].copy(), np.array([0, 1]))
    assert turned[..., ::-1] == pytest.approx(heat, abs=1e-3)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in SMALL])
def test_torchvision_weights_give_torchvision_features(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, reference = make(backbone, input_px=64).eval(), torchvision_net(backbone)
    asked: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return {**reference.state_dict(), "classifier.9.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    head = copy_of(own.head)
    load_pretrained(own, backbone, "imagenet")
    assert asked["url"].rpartition("/")[2].startswith(backbone)
    assert asked["weights_only"]
    assert asked["check_hash"]
    assert not changed(head, own.head)
    with torch.no_grad():
        expected = reference(pictures(2, 64)).flatten(1)
        _, features = own(pictures(2, 64))
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_lenet_is_the_classic_one() -> None:
    lenet = make("lenet5", codes=10)
    shapes = [tuple(weight.shape) for weight in lenet.parameters() if weight.ndim > 1]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert sum(weight.numel() for weight in lenet.parameters()) == 62_006  # LeNet-5 with three input channels


def test_the_stack_is_the_one_of_150_px() -> None:
    stack = make("stack150", input_px=150).eval()
    shapes = [tuple(weight.shape) for weight in stack.parameters() if weight.ndim > 1]
    assert shapes == [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (512, 128 * 17 * 17), (CODES, 512)]
    assert [layer.p for layer in stack.modules() if isinstance(layer, nn.Dropout)] == [0.4]
    with torch.no_grad():
        assert stack(pictures(1, 150))[1].shape == (1, 512)


@pytest.mark.parametrize("side", [33, 62, 63, 97])
@pytest.mark.parametrize("backbone", ["alexnet", "lenet5", "stack150"])
def test_uneven_sizes_fit(backbone: str, side: int) -> None:
    with torch.no_grad():
        logits, _ = make(backbone, input_px=side).eval()(pictures(1, side))
    assert logits.shape == (1, CODES)


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16", "lenet5"])
def test_the_thesis_head_has_its_layers(backbone: str) -> None:
    channels = {"resnet18": 512, "vgg16": 512, "lenet5": 16}[backbone]
    net = make(backbone, "thesis").eval()
    layers = [*net.head.reduce, *net.head.decide]
    assert [type(layer) for layer in layers] == [
        *(AverageAndMax, nn.Flatten, nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU),
        *(nn.BatchNorm1d, nn.Dropout, nn.Linear),
    ]
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.25, 0.5]
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sizes == [(2 * channels, 512), (512, CODES)]
    with torch.no_grad():
        logits, features = net(pictures(3, 40))
    assert features.shape == (3, 512) == (3, net.embedding)
    assert float(features.min()) == 0 < float(features.max())
    assert logits.shape == (3, CODES)


def test_average_comes_before_maximum() -> None:
    pooled = AverageAndMax()(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, 7.0]]]]))
    assert pooled.flatten().tolist() == [3.0, 1.0, 6.0, 7.0]


def test_dropout_is_that_of_the_specification() -> None:
    assert [layer.p for layer in make("resnet18", dropout=0.35).head.decide if isinstance(layer, nn.Dropout)] == [0.35]


def step(net: CellNet) -> None:
    """One training step on all parameters, with weight decay, which would move a frozen weight too."""
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    logits, _ = net(pictures(4, 64))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    optimiser.step()


@pytest.mark.parametrize(("backbone", "head"), [("resnet18", "thesis"), ("mobilenet_v3_small", "plain")])
def test_a_frozen_body_stays_as_it_is_in_training(backbone: str, head: str) -> None:
    net = make(backbone, head)
    net.freeze_body(True)
    body, top = copy_of(net.body), copy_of(net.head)
    step(net)
    assert not changed(body, net.body)
    assert changed(top, net.head) == set(top)  # its BatchNorm layers learn and count
    assert net.training
    assert net.head.training
    assert not any(layer.training for layer in net.body.modules())


def test_a_body_set_free_learns_again() -> None:
    net = make("resnet18")
    net.freeze_body(True)
    net.freeze_body(False)
    body = copy_of(net.body)
    step(net)
    assert changed(body, net.body) == set(body)  # weights, running statistics and counters


def test_freezing_keeps_the_mode() -> None:
    net = make("lenet5").eval()
    net.freeze_body(True)
    assert not net.training
    net.freeze_body(False)
    assert not net.body.training
    assert all(weight.requires_grad for weight in net.parameters())


def lopsided() -> CellNet:
    """A network whose running statistics are far from those of its pictures."""
    net = make("resnet18", "thesis", input_px=64)
    shake(net.body)
    return net


def maps(net: CellNet, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return net.body(pixels).clone()


def closeness(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_recalibration_changes_training_and_not_evaluation() -> None:
    net, pixels, others = lopsided(), pictures(6, 64) + 1, pictures(3, 64, seed=5)
    net.eval()
    before, elsewhere, head = maps(net, pixels), maps(net, others), copy_of(net.head)
    net.train()
    assert closeness(maps(net, pixels), before) < 0.9
    net = lopsided().train()
    recalibrate(net, [pixels])
    assert net.training
    # The statistics of the one batch are now the running ones: both modes compute the same.
    torch.testing.assert_close(maps(net, pixels), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    net = lopsided().eval()
    recalibrate(net, [pixels])
    assert not net.training
    torch.testing.assert_close(maps(net, pixels), before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    torch.testing.assert_close(maps(net, others), elsewhere, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert not changed(head, net.head)
    assert not any(layer._forward_pre_hooks for layer in net.modules())


def test_recalibration_measures_the_inputs_of_each_layer() -> None:
    net, pixels = lopsided(), pictures(5, 64) + 1
    recalibrate(net, iter(pixels.split(2)))
    with torch.no_grad():
        seen = net.body[0](pixels)
    torch.testing.assert_close(net.body[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.body[1].running_var, seen.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_recalibration_in_parts_is_that_of_the_whole() -> None:
    whole, parts, pixels = lopsided(), lopsided(), pictures(6, 64)
    recalibrate(whole, [pixels])
    recalibrate(parts, pixels.split((1, 3, 2)))
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_recalibration_needs_pictures() -> None:
    with pytest.raises(ValueError, match="at least one"):
        recalibrate(make("resnet18"), [])


def test_weights_of_a_file_are_read_without_its_classifier(tmp_path: Path) -> None:
    reference = torchvision_net("mobilenet_v3_small")
    state = {key: value for key, value in reference.state_dict().items() if "num_batches" not in key}
    state = {key: value.half() if value.ndim == 4 else value for key, value in state.items()}
    save_file({**state, "classifier.3.weight": torch.zeros(1000, 3)}, tmp_path / "w.safetensors")
    net = make("mobilenet_v3_small")
    head = copy_of(net.head)
    load_pretrained(net, "mobilenet_v3_small", tmp_path / "w.safetensors")
    assert not changed(head, net.head)
    for key, value in state.items():
        assert torch.equal(net.body.state_dict()[key], value.float()), key


def test_weights_of_an_earlier_run_are_read(tmp_path: Path) -> None:
    earlier, later = make("lenet5", codes=3), make("lenet5")
    shake(earlier)
    save_file(earlier.state_dict(), tmp_path / "model.safetensors")
    load_pretrained(later, "lenet5", str(tmp_path / "model.safetensors"))
    assert not changed(earlier.body.state_dict(), later.body)


def test_published_names_of_densenet_are_understood(tmp_path: Path) -> None:
    net = make("densenet121")
    body = copy_of(net.body)
    old = {}
    for key, value in body.items():
        name = key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        old[name.replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")] = value + 1
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "old.safetensors")
    load_pretrained(net, "densenet121", tmp_path / "old.safetensors")
    assert changed(body, net.body) == set(body)


def test_no_weights_leave_the_net_alone() -> None:
    net = make("lenet5")
    before = copy_of(net)
    load_pretrained(net, "lenet5", None)
    assert not changed(before, net)


def spoil(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "is missing":
        del state["features.3.bias"]
    elif how == "is unknown":
        state["features.6.weight"] = torch.zeros(3)
    else:
        state["features.3.weight"] = torch.zeros(16, 6, 3, 3)
    return state


@pytest.mark.parametrize("how", ["is missing", "is unknown", r"expected \(16, 6, 5, 5\), got \(16, 6, 3, 3\)"])
def test_weights_that_do_not_fit_are_refused_whole(how: str, tmp_path: Path) -> None:
    net = make("lenet5")
    state = {key: value + 1 for key, value in net.body.state_dict().items()}
    file = tmp_path / "other.safetensors"
    save_file(spoil(state, how), file)
    before = copy_of(net)
    with pytest.raises(ModelError, match=f"{file}: not weights of lenet5: features.*{how}.*give the safetensors file"):
        load_pretrained(net, "lenet5", file)
    assert not changed(before, net)


def test_weights_of_a_larger_sister_are_refused(tmp_path: Path) -> None:
    save_file(make("vgg19").body.state_dict(), tmp_path / "vgg19.safetensors")
    with pytest.raises(ModelError, match="not weights of vgg16"):
        load_pretrained(make("vgg16"), "vgg16", tmp_path / "vgg19.safetensors")


def test_nothing_but_safetensors_is_read(tmp_path: Path) -> None:
    net = make("lenet5")
    torch.save(net.body.state_dict(), tmp_path / "pickle.pth")
    with pytest.raises(ModelError, match=r"pickle\.pth: not a safetensors file.*save_file"):
        load_pretrained(net, "lenet5", tmp_path / "pickle.pth")
    with pytest.raises(ModelError, match=r"absent\.safetensors: can't be read.*check the path"):
        load_pretrained(net, "lenet5", tmp_path / "absent.safetensors")


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value")])
def test_published_weights_that_cannot_be_had_name_the_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    net = make("mobilenet_v3_small")
    with pytest.raises(ModelError, match=r"mobilenet_v3_small can't be had from https.*give the safetensors file"):
        load_pretrained(net, "mobilenet_v3_small", "imagenet")
    with pytest.raises(ModelError, match="no published weights of lenet5"):
        load_pretrained(make("lenet5"), "lenet5", "imagenet")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"backbone": "resnet19"}, "backbone"),
        ({"codes": 1}, "codes"),
        ({"input_px": 31}, "input_px"),
        ({"dropout": 1.0}, "dropout"),
        ({"colour": "grey"}, "colour"),
        ({"head": "thesis", "dropout": 0.4}, "the thesis head has its own"),
        ({"backbone": "stack150", "dropout": 0.5}, "stack150 has its own"),
    ],
)
def test_wrong_specifications_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        NetSpec.model_validate({"backbone": "resnet18", "codes": 3, "input_px": 64, **changes})


@pytest.mark.parametrize("head", ["plain", "thesis"])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "stack150"])
def test_plain_data_rebuilds_the_net(backbone: str, head: str) -> None:
    first = make(backbone, head, input_px=40)
    again = build_net(NetSpec.model_validate(first.spec.model_dump(mode="json")))
    again.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first.eval()(pictures(2, 40))[0], again.eval()(pictures(2, 40))[0])


def as_onnx(net: CellNet, side: int, path: Path) -> Path:
    torch.onnx.export(
        net,
        (torch.zeros(2, 3, side, side),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["pixels"],
        output_names=["logits", "features"],
        dynamic_axes={name: {0: "batch"} for name in ("pixels", "logits", "features")},
    )
    return path


@pytest.mark.filterwarnings("ignore")  # of the exporters, about their own future
@pytest.mark.parametrize(
    ("backbone", "head", "side", "through"),
    [
        ("mobilenet_v2", "plain", 64, "onnx"),
        ("mobilenet_v2", "plain", 64, "trace"),
        ("resnet18", "thesis", 64, "onnx"),
        ("resnet18", "thesis", 64, "trace"),
        ("lenet5", "plain", 32, "onnx"),
    ],
)
def test_openvino_gives_the_same_two_outputs(backbone: str, head: str, side: int, through: str, tmp_path: Path) -> None:
    quiet_openvino()
    import openvino

    net = make(backbone, head, side)
    shake(net)
    net.eval()
    if through == "onnx":
        network = openvino.convert_model(as_onnx(net, side, tmp_path / "net.onnx"))
    else:
        network = openvino.convert_model(net, example_input=torch.zeros(2, 3, side, side))
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 3):
        pixels = pictures(n, side)
        with torch.no_grad():
            expected = net(pixels)
        outputs = compiled(pixels.numpy()).to_tuple()
        assert [output.shape for output in outputs] == [(n, CODES), (n, net.embedding)]
        for output, truth in zip(outputs, expected, strict=True):
            scale = max(1.0, float(truth.abs().max()))
            np.testing.assert_allclose(output, truth.numpy(), rtol=0, atol=1e-4 * scale)
            assert float(truth.std()) > 1e-3
