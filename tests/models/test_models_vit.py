"""ViT: the published count, and transformers' outputs on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tauon.config import parse
from tauon.errors import RecipeError
from tauon.models import ModelConfig, from_record, materialize, parameter_count, record
from tauon.types import DataSpec

SMALL = DataSpec(input_shape=(3, 16, 24), outputs=5)


def config(spec: DataSpec = SMALL, **values: Any) -> Any:
    return parse(ModelConfig, {"kind": "vit", **values}).resolve(spec)


def test_vit_b_16_has_its_published_number_of_parameters() -> None:
    spec = DataSpec(input_shape=(3, 224, 224), outputs=1000)
    model = config(spec).build_on_meta()
    assert parameter_count(model) == 86_567_656
    assert model.flops_per_example(spec) / 6 == pytest.approx(17.58e9, rel=2e-3)  # multiply-adds (torchvision's documentation: 17.56)


def as_hugging_face(name: str, tensor: torch.Tensor, patch: int) -> tuple[str, torch.Tensor]:
    words = {
        "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after", "attention.q": "attention.q_proj",
        "attention.k": "attention.k_proj", "attention.v": "attention.v_proj", "attention.out": "attention.o_proj",
        "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
    }  # fmt: skip
    head, _, leaf = name.rpartition(".")
    if head == "patches":
        at = f"vit.embeddings.patch_embeddings.projection.{leaf}"
        return at, tensor.view(tensor.shape[0], -1, patch, patch) if tensor.ndim == 2 else tensor
    if head == "first":
        return "vit.embeddings.cls_token", tensor[None]
    if head == "positions":
        return "vit.embeddings.position_embeddings", tensor[None]
    if head == "norm":
        return f"vit.layernorm.{leaf}", tensor
    if head == "head":
        return f"classifier.{leaf}", tensor
    _, number, rest = head.split(".", 2)
    return f"vit.layers.{number}.{words[rest]}.{leaf}", tensor


def test_outputs_are_transformers_on_the_same_weights() -> None:
    transformers = pytest.importorskip("transformers")
    model = materialize(config(layers=3, width=24, heads=4, mlp_width=40, patch=4), seed=0).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.1)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, image_size=(16, 24), patch_size=4,
            num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(dict(as_hugging_face(k, v, 4) for k, v in model.state_dict().items()))
    x = torch.randn(3, 3, 16, 24, generator=g)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"patch": 5}, "model.patch: 5 does not divide 16x24 pixels"),
        ({"heads": 5}, "5 heads do not divide width 768"),
        ({"patch": 4, "outputs": 3}, "model.outputs: 3, but the data has 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        config(**values)
    with pytest.raises(RecipeError, match="vit needs images"):
        config(DataSpec(input_shape=(9,), outputs=2))


def test_a_record_gives_the_config_back() -> None:
    one = config(layers=1, width=8, heads=2, patch=8)
    assert from_record(record(one)) == one
