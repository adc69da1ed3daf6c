"""scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels in 10 classes, shipped inside the package."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.data.images import ImageSet

TEST_SHARE = 0.2


def stratified_test_mask(labels: Tensor, share: float, seed: int) -> Tensor:
    """Marks `share` of each class (rounded) at random: bool, shape of `labels`. The same seed marks the same."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[: round(share * len(members))]
        mask[members[chosen]] = True
    return mask


def load_digits(split_seed: int = 0) -> ImageSet:
    """80% to train on, 20% to test on, stratified by class, normalised by the training pixels' mean and deviation.

    The split depends on `split_seed` alone, so runs with different seeds are tested on the same images.
    Raises ImportError, naming the extra to install, without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits data set comes with scikit-learn, which is not installed: pip install 'sparsekern[digits]'"
        ) from error
    source = datasets.load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1)
    labels = torch.from_numpy(source.target).long()
    test = stratified_test_mask(labels, TEST_SHARE, split_seed)
    mean, deviation = images[~test].mean(), images[~test].std()
    images = (images - mean) / deviation
    return ImageSet(
        name="digits",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        classes=10,
        background=float(-mean / deviation),
    )
