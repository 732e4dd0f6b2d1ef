"""Layouts and places in them: plain arithmetic, no process group."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from tauon.distributed import AutoParallel, DiLoCo, Layout, Mesh, MeshParallel, World, choose_layout, cut_blocks, pieces_of_batch
from tauon.errors import RecipeError


@pytest.mark.parametrize(
    ("config", "world", "fits", "layout"),
    [
        (AutoParallel(), 1, True, Layout()),
        (AutoParallel(), 4, True, Layout(replicate=4)),
        (AutoParallel(), 4, False, Layout(shard=4)),
        (MeshParallel(), 4, True, Layout(replicate=4)),
        (MeshParallel(tensor=2), 8, True, Layout(replicate=4, tensor=2)),
        (MeshParallel(shard=2), 8, True, Layout(replicate=4, shard=2)),
        (MeshParallel(replicate=2), 8, True, Layout(replicate=2, shard=4)),
        (MeshParallel(pipeline=2, context=2, shard=2), 8, True, Layout(pipeline=2, shard=2, context=2)),
        (DiLoCo(), 3, True, Layout(replicate=3)),
    ],
)
def test_sizes_that_are_left_out_take_the_rest(config: MeshParallel, world: int, fits: bool, layout: Layout) -> None:
    assert choose_layout(config, world, fits=fits)[0] == layout


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (MeshParallel(tensor=3), 2, "tensor 3 needs 3 processes, but 2 are running. Start 3"),
        (MeshParallel(replicate=2, shard=2), 6, "replicate 2 x shard 2 needs 4 processes, but 6 are running"),
        (MeshParallel(shard=4), 6, "4 processes, but 6 are running"),
        (MeshParallel(pipeline=2), 1, "pipeline 2 needs 2 processes, but 1 is running"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_world_are_refused(config: MeshParallel, world: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        choose_layout(config, world)


def test_every_rank_has_a_place_of_its_own_and_every_slice_of_data_its_readers() -> None:
    layout = Layout(pipeline=2, replicate=2, shard=3, context=2, tensor=2)
    meshes = [Mesh(layout, World(rank, layout.world)) for rank in range(layout.world)]
    assert len({tuple(m.at.items()) for m in meshes}) == layout.world == 48
    assert Counter(m.data_rank for m in meshes) == dict.fromkeys(range(6), 8)
    draws = {tuple(n for name, n in m.at.items() if name != "tensor"): m.draws for m in meshes}
    assert len({*draws.values()}) == len(draws) == 24  # only those that hold the same activations drop the same
    assert all(m.draws == m.data_rank for m in meshes if m.at["pipeline"] == m.at["context"] == 0)
    neighbours = [(a, b) for a, b in itertools.pairwise(meshes) if a.at["tensor"] == 0]
    assert all(b.at == {**a.at, "tensor": 1} for a, b in neighbours)  # the innermost dimension is that of the fastest network


@pytest.mark.parametrize(("depth", "stages"), [(4, 2), (7, 3), (126, 16), (5, 5), (9, 4)])
def test_stages_are_contiguous_and_as_even_as_can_be(depth: int, stages: int) -> None:
    cuts = cut_blocks(depth, stages)
    assert [i for start, stop in cuts for i in range(start, stop)] == list(range(depth))
    sizes = [stop - start for start, stop in cuts]
    assert max(sizes) - min(sizes) <= 1


def test_microbatches_of_a_pipeline() -> None:
    assert pieces_of_batch(MeshParallel(pipeline=2), 8) == 4
    assert pieces_of_batch(MeshParallel(pipeline=2), 7) == 7  # torch's 1F1B needs as many pieces as stages
    assert pieces_of_batch(MeshParallel(pipeline=2, schedule="gpipe"), 7) == 1
    assert pieces_of_batch(MeshParallel(pipeline=3, schedule="interleaved-1f1b"), 12) == 6
    assert pieces_of_batch(MeshParallel(pipeline=2, stage_microbatches=8), 8) == 8
    with pytest.raises(RecipeError, match="is 3, which does not divide the 8 examples"):
        pieces_of_batch(MeshParallel(pipeline=2, stage_microbatches=3), 8)
    with pytest.raises(RecipeError, match="needs a multiple of 2 microbatches per process, but got 7 examples"):
        pieces_of_batch(MeshParallel(pipeline=2, schedule="zero-bubble"), 7)
    with pytest.raises(RecipeError, match="needs at least 2 microbatches per process, but got 1 examples"):
        pieces_of_batch(MeshParallel(pipeline=2), 1)
    with pytest.raises(RecipeError, match="needs at least 4 microbatches per process, but got 2"):
        pieces_of_batch(MeshParallel(pipeline=4, stage_microbatches=2), 8)


def test_gathered_weights_are_kept_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from tauon.models import GPTConfig, parameter_count
    from tauon.plan import memory, weights_are_few

    model = GPTConfig(layers=2, width=32, heads=2, vocab=64, seq_len=8)
    whole = parameter_count(model.build_on_meta()) * 4
    cpu, layout = torch.device("cpu"), Layout(shard=2)
    monkeypatch.setattr(memory, "available_memory", lambda device: 20 * whole + 100)
    assert weights_are_few(model, cpu, layout, processes=2) and not weights_are_few(model, cpu, layout, processes=3)
    assert weights_are_few(model, cpu, Layout(shard=2, tensor=2), processes=4)  # a tensor-parallel process has half of them
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    assert not weights_are_few(model, cpu, layout, processes=1)
