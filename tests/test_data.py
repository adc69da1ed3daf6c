import builtins

import pytest
import torch

from sparsekern.data import BatchLoader, load_digits
from sparsekern.data.loader import shifted


def test_digits_split_is_fixed_stratified_and_normalised():
    digits, again = load_digits(), load_digits()
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert digits.train_images.shape[1:] == (1, 8, 8)
    assert torch.equal(digits.test_images, again.test_images)
    assert torch.equal(digits.test_labels, again.test_labels)
    every = torch.cat([digits.train_labels, digits.test_labels]).bincount()
    assert torch.equal(digits.test_labels.bincount(), (every * 0.2).round().long())
    assert digits.train_images.mean().abs() < 1e-5
    assert (digits.train_images.std() - 1).abs() < 1e-5
    assert digits.background == pytest.approx(float(digits.train_images.min()))


def test_another_split_seed_tests_on_other_images():
    assert not torch.equal(load_digits(0).test_images, load_digits(1).test_images)


def test_train_and_test_images_are_disjoint():
    digits = load_digits()
    train = {tuple(image.flatten().tolist()) for image in digits.train_images}
    assert not any(tuple(image.flatten().tolist()) in train for image in digits.test_images)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    def refuse(name, *arguments, **keywords):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"sparsekern\[digits\]"):
        load_digits()


def make_loader(seed=3, shift=1, count=23, batch_size=5):
    images = torch.arange(count * 4.0).view(count, 1, 2, 2)
    return BatchLoader(images, torch.arange(count), batch_size, seed=seed, shift=shift, fill=-1.0)


def test_every_sample_at_most_once_an_epoch_in_a_new_order():
    loader = make_loader()
    first, second = (torch.cat([labels for _, labels in loader]) for _ in range(2))
    assert len(loader) == 4
    assert len(first) == 20
    assert len(first.unique()) == 20
    assert not torch.equal(first, second)


def test_images_and_labels_stay_together():
    for images, labels in make_loader(shift=0):
        assert torch.equal(images[:, 0, 0, 0], 4.0 * labels)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 8])
def test_resumed_order_and_shifts_are_the_same(stop):
    def batches(loader, epochs):
        return [batch for _ in range(epochs) for batch in loader]

    whole = batches(make_loader(), 3)
    loader, before = make_loader(), []
    while len(before) < stop:
        for batch in loader:
            before.append(batch)
            if len(before) == stop:
                break
    resumed = make_loader(seed=99)
    resumed.load_state_dict(loader.state_dict())
    rest = batches(resumed, 4)[: len(whole) - stop]
    assert len(rest) == len(whole) - stop
    for (images, labels), (expected_images, expected_labels) in zip(before + rest, whole, strict=True):
        assert torch.equal(labels, expected_labels)
        assert torch.equal(images, expected_images)


def test_state_of_another_set_is_refused():
    with pytest.raises(ValueError, match=r"23 samples.*has 30"):
        make_loader(count=30).load_state_dict(make_loader().state_dict())


def test_shifted_moves_each_image_by_its_own_offset():
    images = torch.arange(1.0, 10.0).view(1, 1, 3, 3).repeat(3, 1, 1, 1)
    moved = shifted(images, torch.tensor([[1, 1], [0, 1], [1, 2]]), reach=1, fill=0.0)
    assert torch.equal(moved[0], images[0])
    assert moved[1, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert moved[2, 0].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]


@pytest.mark.parametrize("batch_size", [0, 24])
def test_impossible_batch_sizes(batch_size):
    with pytest.raises(ValueError, match=f"from 1 to the 23 samples.*got {batch_size}"):
        make_loader(batch_size=batch_size)


def test_negative_shift():
    with pytest.raises(ValueError, match="shift must not be negative, got -1"):
        make_loader(shift=-1)
