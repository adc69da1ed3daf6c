import pytest
import torch
import torch.nn.functional as F

from sparsekern.cli import main
from sparsekern.tost import smoothed_cross_entropy


@pytest.mark.parametrize("shape", [(7, 5), (5,), (7, 5, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.8])
def test_both_definitions(shape, smoothing):
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64)
    dim = min(1, len(shape) - 1)
    targets = torch.randint(5, shape[:dim] + shape[dim + 1 :])
    hot = F.one_hot(targets, 5).movedim(-1, dim).double()
    soft = {"all": (1 - smoothing) * hot + smoothing / 5, "others": (1 - smoothing) * hot + smoothing / 4 * (1 - hot)}
    for over, labels in soft.items():
        expected = -(labels * logits.log_softmax(dim)).sum(dim)
        value = smoothed_cross_entropy(logits, targets, smoothing, over)
        torch.testing.assert_close(value, expected.mean())
        value = smoothed_cross_entropy(logits, targets, smoothing, over, reduction="none")
        torch.testing.assert_close(value, expected)
    assert smoothing == 0 or not torch.equal(soft["all"], soft["others"])


def test_all_is_torchs():
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(
        smoothed_cross_entropy(logits, targets, 0.2), F.cross_entropy(logits, targets, label_smoothing=0.2)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, "classes"), "over is 'classes'; expected one of all, others"),
        ((-0.1,), r"smoothing is -0\.1; expected a number in \[0, 1\]"),
        ((float("nan"),), "smoothing is nan"),
        ((0.81, "others"), r"smoothing is 0\.81 over the others of 5 classes; expected at most 0\.8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        smoothed_cross_entropy(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), *arguments)


def test_too_much_for_the_classes_is_refused_before_anything_is_written(tmp_path, capsys):
    pytest.importorskip("sklearn")
    output = tmp_path / "run"
    options = ["--label-smoothing", "0.95", "--label-smoothing-over", "others", "--model", "mlp", "--width", "8"]
    assert main(["train", *options, "--output", str(output)]) == 1
    assert capsys.readouterr().err.startswith("sparsekern train: smoothing is 0.95 over the others of 10 classes; ")
    assert not output.exists()
