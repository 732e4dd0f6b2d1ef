"""Residual networks: published counts, the outputs of somebody else's network on the same weights, published weights and their score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauon.config import parse
from tauon.errors import RecipeError, TrainingError
from tauon.models import (
    BatchNorm,
    ModelConfig,
    ResNet,
    from_record,
    load_weights,
    materialize,
    parameter_count,
    published_resnet,
    record,
)
from tauon.models.norm import drop_path, freeze_running_stats
from tauon.types import DataSpec

CIFAR = DataSpec(input_shape=(3, 32, 32), outputs=10)


def config(kind: str, spec: DataSpec = CIFAR, **values: Any) -> Any:
    return parse(ModelConfig, {"kind": kind, **values}).resolve(spec)


@pytest.mark.parametrize(
    ("kind", "spec", "count"),
    [  # torchvision's documentation; He et al. 2015, table 6, in millions: 0.27, 0.46, 0.85
        ("resnet18", DataSpec(input_shape=(3, 224, 224), outputs=1000), 11_689_512),
        ("resnet34", DataSpec(input_shape=(3, 224, 224), outputs=1000), 21_797_672),
        ("resnet50", DataSpec(input_shape=(3, 224, 224), outputs=1000), 25_557_032),
        ("resnet20", CIFAR, 269_722),
        ("resnet32", CIFAR, 464_154),
        ("resnet56", CIFAR, 853_018),
    ],
)
def test_published_numbers_of_parameters(kind: str, spec: DataSpec, count: int) -> None:
    assert parameter_count(config(kind, spec).build_on_meta()) == count


def test_published_numbers_of_operations() -> None:
    """Multiply-adds: 1.8, 3.6 and 4.1 billion at 224 pixels (torchvision's documentation: 1.81, 3.66, 4.09); 40.8 million of ResNet-20."""
    large = DataSpec(input_shape=(3, 224, 224), outputs=1000)
    for kind, spec, wanted in (
        ("resnet18", large, 1.814e9), ("resnet34", large, 3.664e9), ("resnet50", large, 4.089e9), ("resnet20", CIFAR, 40.55e6),
    ):  # fmt: skip
        assert config(kind, spec).build_on_meta().flops_per_example(spec) / 6 == pytest.approx(wanted, rel=1e-3)


def as_hugging_face(name: str) -> str:
    """The name of a weight in transformers' ResNet."""
    head, _, leaf = name.rpartition(".")
    parts = head.split(".")
    if parts[0] == "fc":
        return f"classifier.1.{leaf}"
    if not parts[0].startswith("layer"):
        return f"resnet.embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{leaf}"
    at = f"resnet.encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{at}.shortcut.{'convolution' if parts[3] == '0' else 'normalization'}.{leaf}"
    kind = "convolution" if parts[2].startswith("conv") else "normalization"
    return f"{at}.layer.{int(parts[2][-1]) - 1}.{kind}.{leaf}"


@pytest.mark.parametrize(("kind", "depths", "layer"), [("resnet18", [2, 2, 2, 2], "basic"), ("resnet50", [3, 4, 6, 3], "bottleneck")])
def test_outputs_are_transformers_on_the_same_weights(kind: str, depths: list[int], layer: str) -> None:
    transformers = pytest.importorskip("transformers")
    spec = DataSpec(input_shape=(3, 64, 64), outputs=7)
    model = materialize(config(kind, spec, stem="imagenet", zero_init=False, width=8), seed=0).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2 or p.count_nonzero() == 0:
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.running_mean.normal_(generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
    sizes = [8, 16, 32, 64] if layer == "basic" else [32, 64, 128, 256]
    theirs = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=depths, hidden_sizes=sizes, layer_type=layer, num_labels=7, embedding_size=8)
    ).double()
    missing, left = theirs.load_state_dict({as_hugging_face(k): v for k, v in model.state_dict().items()}, strict=False)
    assert left == [] and all(k.endswith("num_batches_tracked") for k in missing)
    x = torch.randn(3, 3, 64, 64, generator=g, dtype=torch.float64)
    for train in (False, True):
        model.train(train)
        theirs.train(train)
        ours, wanted = model(x), theirs(x).logits
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)
        assert ours.std() > 0.1
    ours, wanted = model.state_dict(), theirs.state_dict()
    for name in ours:  # running statistics moved alike
        torch.testing.assert_close(ours[name], wanted[as_hugging_face(name)], rtol=1e-8, atol=1e-8)


def test_option_a_is_every_second_pixel_and_zeros() -> None:
    model: Any = materialize(config("resnet20"), seed=0)
    x = torch.randn(2, 16, 8, 8)
    short = model.layer2[0].downsample(x)
    assert short.shape == (2, 32, 4, 4)
    assert torch.equal(short[:, 8:24], x[:, :, ::2, ::2])
    assert short[:, :8].count_nonzero() == short[:, 24:].count_nonzero() == 0
    assert model.layer2[1].downsample is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_option_a_keeps_the_layout_of_its_gradient(dtype: torch.dtype) -> None:
    """One gradient that is not channels-last makes all before it slow."""
    model: Any = materialize(config("resnet20"), seed=0)
    x = torch.randn(2, 16, 9, 8).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    short = model.layer2[0].downsample(x)
    g = torch.randn(short.shape).to(dtype).contiguous(memory_format=torch.channels_last)
    short.backward(g)
    wanted = torch.zeros_like(x)
    wanted[:, :, ::2, ::2] = g[:, 8:24]
    assert x.grad is not None and torch.equal(x.grad, wanted)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def published(mirror: Path, name: str) -> dict[str, torch.Tensor]:
    path = mirror / "checkpoints" / "resnet-cifar10" / name
    if path.suffix == ".th":
        return published_resnet(torch.load(path, weights_only=True, map_location="cpu")["state_dict"])
    from safetensors.torch import load_file

    return published_resnet(load_file(path))


@pytest.mark.parametrize(
    ("kind", "files"), [("resnet20", ["resnet20.safetensors", "resnet20-12fca82f.th"]), ("resnet32", ["resnet32-d509ac18.th"])]
)
def test_published_weights_load_and_score_what_the_mirror_says(kind: str, files: list[str], mirror: Path) -> None:
    """The mirror's README: ResNet-20 has 81.0% on 10,000 JPEG test pictures, ResNet-32 81.9% on the subset's 2,000."""
    model = materialize(config(kind), seed=0)
    for name in files:
        load_weights(model, published(mirror, name), where=name)
    with np.load(mirror / "cifar10-subset" / "cifar10_10k_2k.npz") as data:
        x, y = torch.from_numpy(data["x_test"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(data["y_test"]).flatten().long()
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x[i : i + 250]).argmax(1) == y[i : i + 250]).sum()) for i in range(0, 2000, 250))
    assert right / 2000 == pytest.approx({"resnet20": 0.81, "resnet32": 0.819}[kind], abs=0.02)


def test_published_weights_of_another_network_are_named(mirror: Path) -> None:
    from tauon.errors import CheckpointError

    model = materialize(config("resnet32"), seed=0)
    with pytest.raises(CheckpointError, match=r"resnet20.*missing layer1\.3\.conv1\.weight"):
        load_weights(model, published(mirror, "resnet20.safetensors"), where="resnet20")


def test_torchvisions_names() -> None:
    names = set(config("resnet50", DataSpec(input_shape=(3, 224, 224), outputs=1000)).build_on_meta().state_dict())
    for name in ("conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_var",
                 "layer3.5.bn3.bias", "layer4.2.conv3.weight", "fc.weight"):  # fmt: skip
        assert name in names
    assert not any("num_batches_tracked" in name for name in names)
    assert published_resnet({"module.linear.weight": torch.ones(1), "bn1.num_batches_tracked": torch.ones(1)}) == {
        "fc.weight": torch.ones(1)
    }


# ---------------------------------------------------------------------------------------------- settings


def test_the_stem_follows_the_pictures_size() -> None:
    for side, stem in ((28, "small"), (64, "small"), (65, "imagenet"), (224, "imagenet")):
        one = config("resnet18", DataSpec(input_shape=(3, side, side), outputs=2))
        assert one.stem == stem
        assert from_record(record(one)) == one
    assert config("resnet18", stem="imagenet").stem == "imagenet"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "resnet20", "norm": "group", "groups": 5}, "groups: 5 does not divide the first stage's 16 channels"),
        ({"kind": "resnet18", "norm": "group", "groups": 48}, "48 does not divide the first stage's 64"),
        ({"kind": "resnet20", "outputs": 3}, "model.outputs: 3, but the data has 10"),
        ({"kind": "resnet20", "input_shape": [1, 32, 32]}, "model.input_shape"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(ModelConfig, values).resolve(CIFAR)
    with pytest.raises(RecipeError, match="needs images"):
        parse(ModelConfig, {"kind": "resnet20"}).resolve(DataSpec(input_shape=(7,), outputs=2))
    with pytest.raises(RecipeError, match="resolve the config"):
        parse(ModelConfig, {"kind": "resnet18"}).build()


def test_group_norm_lets_no_example_see_another_in_training() -> None:
    x = torch.randn(4, 3, 32, 32)
    for norm, alone in (("group", True), ("batch", False)):
        model = materialize(config("resnet20", norm=norm), seed=0).train()
        with torch.no_grad():
            model.get_parameter("fc.weight").normal_()
        same = torch.allclose(model(x)[:1], model(x[:1]), atol=1e-4)
        assert same == alone


def test_drop_path_keeps_the_mean_and_drops_whole_examples() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    out = drop_path(x, 0.3, True)
    assert sorted(set(out.flatten().tolist())) == [0.0, pytest.approx(1 / 0.7)]
    assert torch.equal(out[:, 0, 0], out[:, 1, 2])
    assert out.mean().item() == pytest.approx(1, abs=4 * np.sqrt(0.3 / 0.7 / 4000))
    assert torch.equal(drop_path(x, 0.3, False), x)
    model: Any = materialize(config("resnet20", drop_path=0.4), seed=0)
    shares = [block.drop_path for block in model.blocks_to_compile()]
    assert shares == pytest.approx([0.4 * i / 8 for i in range(9)])


# ---------------------------------------------------------------------------------------------- batch norm


def test_batch_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    with torch.no_grad():
        for p, q in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            q.normal_()
            p.copy_(q)
    ours.start()
    for _ in range(3):
        x = (torch.randn(6, 5, 3, 4) * 3 + 2).requires_grad_()
        y = x.detach().clone().requires_grad_()
        a, b = ours(x), theirs(y)
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        a.square().sum().backward()
        b.square().sum().backward()
        assert torch.equal(x.grad, y.grad)  # type: ignore[arg-type]
        assert torch.equal(ours.running_mean, theirs.running_mean) and torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_inside_still_running_statistics_do_not_move() -> None:
    model = materialize(config("resnet20"), seed=0).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    with freeze_running_stats(model):
        model(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model(torch.randn(4, 3, 32, 32))
    assert not any(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_one_value_a_channel_cannot_be_normalised() -> None:
    model = materialize(config("resnet20", DataSpec(input_shape=(3, 4, 4), outputs=2)), seed=0).train()
    assert isinstance(model, ResNet)
    with pytest.raises(TrainingError, match=r"one value a channel.*norm=group"):
        model(torch.randn(1, 3, 4, 4))
    assert model.eval()(torch.randn(1, 3, 4, 4)).shape == (1, 2)
