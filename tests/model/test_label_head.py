"""The label head: its gradients by record, its place in the clipped vector, and its way through a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from carefl_secure.data.records import BASIC, EMOTIC, LabelSpace
from carefl_secure.errors import ModelError, NonFiniteError
from carefl_secure.model.label_head import HEAD_FILE, HEAD_SETTINGS, LabelHead, base_share
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter, StackedAdapter
from carefl_secure.model.saved import load_saved
from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum
from carefl_secure.privacy.clipping.per_record import native_gradients

RECORDS = 6


def wearing(folder: Path, space: LabelSpace = BASIC, train: str = "B") -> Adapter:
    """Return an adapter with a head whose every value is moved away from its start."""
    base = load_base(str(folder), quantization="none")
    adapter = Adapter(base, rank=2, alpha=4, targets=("q", "v"), train=train, head=space.labels)
    rng = np.random.default_rng(0)
    adapter.load((adapter.vector() + rng.normal(0, 0.02, adapter.dimension)).astype(np.float32))
    return adapter


def features(records: int = RECORDS, seed: int = 0) -> Tensor:
    """Return random image tokens of the embedded shape."""
    return torch.randn(records, 16, 128, generator=torch.Generator().manual_seed(seed))


def learner(adapter: Adapter, space: LabelSpace = BASIC) -> RecordLosses:
    """Return losses of a few records with arbitrary labels."""
    labels = np.eye(len(space.labels), dtype=np.float32)[np.arange(RECORDS) % len(space.labels)]
    return RecordLosses(LabelScorer(adapter, space, "Which?"), features(), labels)


def summed(adapter: Adapter, indices: list[int], norm: float = 1.0, normalise: bool = True) -> np.ndarray:
    """Return a clipped sum over what trains."""
    clip = Clipping(norm, normalise, "native", 4)
    return clipped_sum(
        adapter.module, adapter.active(1), learner(adapter).losses, np.array(indices, np.int64), clip
    ).vector


def test_an_untrained_head_changes_no_score_and_is_no_constant_later(tiny: Path) -> None:
    base = load_base(str(tiny), quantization="none")
    adapter = Adapter(base, rank=2, alpha=4)
    scorer = LabelScorer(adapter, EMOTIC, "Which?")
    before = scorer.all(features())
    adapter.attach_head(EMOTIC.labels)
    assert np.array_equal(scorer.all(features()), before)
    head = adapter.head
    assert head is not None
    torch.nn.init.normal_(head.linear.weight)
    expected = before + head(features(), EMOTIC.labels).detach().numpy()
    assert np.allclose(scorer.all(features()), expected, atol=1e-6)
    assert np.ptp(expected - before, axis=0).min() > 0.01


def test_inputs_have_one_norm_and_follow_their_own_record_alone() -> None:
    head = LabelHead(BASIC.labels, 64, 24)  # 64 tokens become 4 x 4 cells
    seen = torch.randn(5, 64, 24)
    head.set_centre(torch.randn(9, 64, 24) + 1)
    z = head.inputs(seen)
    assert z.shape == (5, 16 * 24 + 1)
    assert torch.allclose(z.norm(dim=1), torch.full((5,), float(np.sqrt(1.25 * 16 * 24))), rtol=1e-5)
    single = LabelHead(BASIC.labels, 64, 24, multi=False)  # one label holds: a shorter constant
    assert torch.allclose(single.inputs(seen).norm(dim=1), torch.full((5,), float(np.sqrt(1.01 * 16 * 24))), rtol=1e-5)
    assert torch.equal(head.with_settings(single.settings()).inputs(seen), single.inputs(seen))
    # the last tile counts, and nothing of another record
    assert torch.allclose(head.inputs(torch.cat([torch.randn(5, 64, 24), seen], 1)), z)
    other = seen.clone()
    other[1:] = torch.randn(4, 64, 24)
    assert torch.allclose(head.inputs(other)[0], z[0], atol=1e-6)
    # the cell in the corner is the mean of four neighbouring tokens
    plain = LabelHead(BASIC.labels, 64, 24)
    corner = seen[0, [0, 1, 8, 9]].mean(0)
    assert torch.allclose(plain.inputs(seen)[0, :24], corner / corner.norm() * np.sqrt(24), atol=1e-5)
    assert LabelHead(BASIC.labels, 81, 24).inputs(torch.randn(2, 81, 24)).shape == (2, 16 * 24 + 1)
    assert LabelHead(BASIC.labels, 5, 24).inputs(torch.zeros(2, 5, 24)).isfinite().all()


def test_labels_are_found_by_name_and_a_foreign_label_silences_the_head() -> None:
    head = LabelHead(("a", "b", "c"), 16, 8)
    torch.nn.init.normal_(head.linear.weight)
    seen = torch.randn(2, 16, 8)
    logits = head(seen, ("a", "b", "c"))
    assert torch.equal(head(seen, ("c", "a")), logits[:, [2, 0]])
    assert not head(seen, ("a", "z")).any()


@pytest.mark.parametrize("space", [BASIC, EMOTIC], ids=lambda space: space.name)
def test_gradients_by_record_equal_autograd_record_by_record(tiny: Path, space: LabelSpace) -> None:
    adapter = wearing(tiny, space)
    losses, active = learner(adapter, space), adapter.active(1)
    with native_gradients(adapter.module, active) as split:
        found = split(losses.losses(np.arange(RECORDS)))
    assert active[-1][0] == "label_head.linear.weight"
    for i in range(RECORDS):
        alone = torch.autograd.grad(losses.losses(np.array([i])).sum(), [p for _, p in active])
        for mine, theirs in zip(found, alone, strict=True):
            assert mine is not None
            assert torch.allclose(mine[i], theirs, atol=1e-5, rtol=1e-3)


def test_the_norm_is_that_of_adapter_and_head_together(tiny: Path) -> None:
    adapter = wearing(tiny)
    whole = [summed(adapter, [i], normalise=False, norm=1e6) for i in range(RECORDS)]
    rows = adapter.active(1)[-1][1].numel()
    for i, gradient in enumerate(whole):
        clipped = summed(adapter, [i], norm=0.5, normalise=False)
        assert np.linalg.norm(gradient[:-rows]) > 0.1 < np.linalg.norm(gradient[-rows:])
        assert np.allclose(clipped, gradient * min(1, 0.5 / np.linalg.norm(gradient)), rtol=1e-4, atol=1e-7)


def test_a_record_moves_the_sum_by_the_clipping_norm_at_most(tiny: Path) -> None:
    adapter = wearing(tiny)
    everyone = summed(adapter, list(range(RECORDS)))
    for i in range(RECORDS):
        rest = summed(adapter, [j for j in range(RECORDS) if j != i])
        assert np.linalg.norm(everyone - rest) <= 1 + 1e-4


def test_a_head_that_escapes_the_clipping_is_caught(tiny: Path) -> None:
    """The broken build: clip what belongs to the adapter, and add the head's gradient as it is."""
    adapter = wearing(tiny)
    losses, active = learner(adapter), adapter.active(1)
    plain = [torch.autograd.grad(losses.losses(np.array([i])).sum(), active[-1][1])[0] for i in range(RECORDS)]
    assert min(float(g.norm()) for g in plain) > 1.001  # what `remove one` and `clipping` of the audit measure
    with pytest.raises(Exception, match="outside its linear layer"):  # a head that avoids its layer is refused
        head = adapter.head
        assert head is not None
        with native_gradients(adapter.module, active) as split:
            split((head.inputs(features()) @ head.linear.weight.T).sum(1))


@pytest.mark.parametrize("train", ["B", "alternate"])
def test_the_centre_travels_and_never_trains(tiny: Path, train: str) -> None:
    adapter = wearing(tiny, train=train)
    head = adapter.head
    assert head is not None
    names = np.concatenate([np.full(p.numel(), name) for name, p in adapter.parameters])
    trains = adapter.trainable_entries(1) | adapter.trainable_entries(2)
    fixed = ("label_head.centre", "label_head.reduction", "label_head.share")
    assert np.array_equal(~trains, np.isin(names, fixed))
    head.fit(features(40) + 1)
    head.weigh(0.25)
    there = wearing(tiny, train=train)
    there.load(adapter.vector())
    assert there.head is not None
    assert torch.equal(there.head.centre, head.centre)
    assert torch.equal(there.head.reduction, head.reduction) and head.reduction.any()
    assert float(there.head.share) == 0.25 and not there.head.alone


def test_channels_are_whitened_without_noise_and_few_directions_reduced_with_it() -> None:
    stretched = torch.randn(80, 16, 24, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.5, 24) + 2
    plain, noisy = LabelHead(BASIC.labels, 16, 24, noisy=False), LabelHead(BASIC.labels, 16, 24)
    for head in (plain, noisy):
        head.fit(stretched)
    assert plain.reduction.shape == (24, 24) and noisy.reduction.shape == (8, 16 * 24)

    def spread(head: LabelHead) -> Tensor:
        cells = head._cells(stretched) - head.centre
        blocks = cells.view(-1, head.reduction.shape[1])
        return torch.linalg.svdvals(blocks - blocks @ head.reduction.T @ head.reduction)

    before = torch.linalg.svdvals(plain._cells(stretched).sub(plain.centre).view(-1, 24))
    assert before[0] / before[-2] > 2 * spread(plain)[0] / spread(plain)[-2]
    assert torch.allclose(spread(noisy)[:9], spread(noisy)[0].expand(9), rtol=1e-3)
    plain.fit(stretched[:20])  # too few to know the variances of channels
    assert not plain.reduction.any()


@pytest.mark.parametrize("multi", [False, True])
def test_the_base_counts_as_far_as_public_records_bear_it_out(multi: bool) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 3, (400, 3)).astype(np.float32)
    chances = 1 / (1 + np.exp(-0.4 * scores)) if multi else np.exp(0.4 * scores)
    if multi:
        known = (rng.random(scores.shape) < chances).astype(np.float32)
    else:
        known = np.eye(3, dtype=np.float32)[[rng.choice(3, p=row / row.sum()) for row in chances]]
    assert base_share(scores, known, multi=multi) == pytest.approx(0.4, abs=0.12)
    assert base_share(scores, rng.permutation(known), multi=multi) == 0
    assert base_share(-scores, known, multi=multi) == 0


@pytest.mark.parametrize("train", ["B", "alternate"])
def test_a_head_alone_is_all_that_trains_and_all_that_counts(tiny: Path, tmp_path: Path, train: str) -> None:
    adapter = wearing(tiny, train=train)
    head = adapter.head
    assert head is not None
    base = LabelScorer(adapter, BASIC, "Which?").all(features())
    head.weigh(0.0)
    vector = adapter.vector()
    scores = LabelScorer(adapter, BASIC, "Which?").all(features())
    assert np.allclose(scores, head(features(), BASIC.labels).log_softmax(-1).detach().numpy(), atol=1e-6)
    assert not np.allclose(scores, base, atol=1e-2)
    for number in (1, 2):
        assert [name for name, _ in adapter.active(number)] == ["label_head.linear.weight"]
    assert summed(adapter, list(range(RECORDS))).any()
    adapter.load(adapter.untuned())
    assert not head.alone and len(adapter.active(1)) > (train == "B")
    adapter.load(vector)
    assert head.alone
    adapter.save(tmp_path)
    fresh = wearing(tiny, train=train)
    load_saved(fresh, tmp_path)
    assert fresh.head is not None and fresh.head.alone
    assert np.allclose(LabelScorer(fresh, BASIC, "Which?").all(features()), scores, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 16])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_head_of_any_grid_knows_whether_its_rounds_had_noise(tokens: int, noisy: bool) -> None:
    seen = torch.randn(80, tokens, 24, generator=torch.Generator().manual_seed(2)) * torch.linspace(3, 0.5, 24)
    head = LabelHead(BASIC.labels, tokens, 24, noisy=noisy)
    head.fit(seen)
    fresh = LabelHead(BASIC.labels, tokens, 24).with_settings(head.settings())
    fresh.load_state_dict(head.state_dict())
    assert fresh.settings() == head.settings() and torch.equal(fresh.inputs(seen), head.inputs(seen))
    assert len(head.reduction) == (8 if noisy else 24) and head.reduction.any(1).sum() > (0 if noisy else 20)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("cells", [1, 16])
def test_a_head_that_version_0_1_0_saved_is_loaded_with_its_noise(
    tiny: Path, tmp_path: Path, noisy: bool, cells: int
) -> None:
    adapter = wearing(tiny)
    adapter.attach_head(BASIC.labels, LabelHead(BASIC.labels, cells, 128, noisy=noisy))
    head = adapter.head
    assert head is not None
    head.fit(features(80)[:, :cells] + 1)
    torch.nn.init.normal_(head.linear.weight)
    adapter.save(tmp_path)
    about = json.loads((tmp_path / HEAD_SETTINGS).read_text())
    for later in ("noisy", "constant", "sha256"):
        del about[later]
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps(about))
    fresh = wearing(tiny)
    fresh.attach_head(EMOTIC.labels, LabelHead(EMOTIC.labels, cells, 128, noisy=not noisy))
    load_saved(fresh, tmp_path)
    assert fresh.head is not None and fresh.head.settings() == head.settings()
    assert torch.equal(fresh.head.inputs(features()), head.inputs(features()))


@pytest.mark.parametrize("stack", [False, True])
def test_a_saved_head_gives_the_same_scores(tiny: Path, tmp_path: Path, stack: bool) -> None:
    adapter = wearing(tiny)
    if stack:
        adapter = StackedAdapter(adapter, seed=5)
    scores = LabelScorer(adapter, BASIC, "Which?").all(features())
    adapter.save(tmp_path)
    rank = 4 if stack else 2
    base = load_base(str(tiny), quantization="none")
    fresh = Adapter(base, rank=rank, alpha=2 * rank, targets=("q", "v"), train="B", head=EMOTIC.labels)
    load_saved(fresh, tmp_path)
    assert fresh.head is not None
    assert fresh.head.labels == BASIC.labels
    assert np.allclose(LabelScorer(fresh, BASIC, "Which?").all(features()), scores, atol=1e-5)
    about = json.loads((tmp_path / HEAD_SETTINGS).read_text())
    assert about.pop("constant") == 0.5 and about.pop("noisy") is True and about.pop("sha256")
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps(about))  # as earlier versions wrote it
    load_saved(fresh, tmp_path)
    assert np.allclose(LabelScorer(fresh, BASIC, "Which?").all(features()), scores, atol=1e-5)


def test_a_folder_that_does_not_fit_is_refused_and_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    adapter = wearing(tiny)
    adapter.save(tmp_path)
    fresh = wearing(tiny)
    fresh.load(fresh.vector() * 2)
    before = fresh.vector()
    tensors, about = load_file(tmp_path / HEAD_FILE), json.loads((tmp_path / HEAD_SETTINGS).read_text())
    del about["sha256"]  # which would notice every edit below

    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            load_saved(fresh, tmp_path)
        assert np.array_equal(fresh.vector(), before)

    save_file({**tensors, "linear.weight": tensors["linear.weight"] * float("nan")}, tmp_path / HEAD_FILE)
    refused(NonFiniteError, "NaN")
    save_file({**tensors, "linear.weight": tensors["linear.weight"][:, :-1].contiguous()}, tmp_path / HEAD_FILE)
    refused(ModelError, "another base")
    save_file(tensors, tmp_path / HEAD_FILE)
    for wrong in ({**about, "labels": about["labels"][:-1]}, {**about, "grid": 2}):
        (tmp_path / HEAD_SETTINGS).write_text(json.dumps(wrong))
        refused(ModelError, "another base")
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps({**about, "labels": ["x"] * 7}))
    refused(ModelError, "name its labels")
    (tmp_path / HEAD_SETTINGS).write_text(json.dumps({**about, "constant": None}))
    refused(ModelError, "constant")
    (tmp_path / HEAD_FILE).unlink()
    refused(ModelError, "no label head")
