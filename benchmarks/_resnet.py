"""The published CIFAR ResNet-20 and images of the test set, as both sides of a benchmark of explanations see them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def resnet20() -> tuple[Any, Any]:
    """(model in evaluation mode, data spec)."""
    from tauon.models import from_record, load_weights, materialize
    from tauon.models.families.resnet import published_resnet
    from tauon.types import DataSpec

    spec = DataSpec(input_shape=(3, 32, 32), outputs=10, labels=CLASSES)
    model = materialize(from_record({"kind": "resnet20"}).resolve(spec), seed=0).eval()
    load_weights(model, published_resnet(load_file(data() / "checkpoints" / "resnet-cifar10" / "resnet20.safetensors")))
    return model, spec


def images(n: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """(normalised test images NCHW, labels N)."""
    found = np.load(data() / "cifar10-subset" / "cifar10_10k_2k.npz")
    x = torch.tensor(found["x_test"][start : start + n]).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), torch.tensor(found["y_test"][start : start + n]).long()


def cases(n: int, start: int = 0) -> Any:
    """Cases of the predicted classes; the baseline is the mean colour, 0."""
    from tauon.explain import cases_of
    from tauon.types import Batch

    model, spec = resnet20()
    x, y = images(n, start)
    return cases_of(model, "arrays", spec, Batch(x, y, torch.ones(n)))


def data() -> Path:
    return Path(os.environ.get("TAUON_DATA", "/work/shared/data"))
