"""`fuse`: what it replaces and merges, what it leaves, and that nothing else of the model changes."""

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk


class Branch(nn.Module):
    """A residual branch written in a forward function, which is not looked into."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + x)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        Branch(),
        nn.BatchNorm2d(6, affine=False, momentum=None),
        nn.Sequential(nn.GELU(approximate="tanh"), nn.ReLU()),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
    )


def test_report_and_places():
    model = make_model()
    report = sk.fuse(model)
    assert report.norms == ("0.1", "1.norm", "2", "4")
    assert report.merged == (("0.1", "0.2"),)
    assert report.activations == ("3.0", "5")
    assert str(report).splitlines()[0] == "0.1: BatchNorm2d with 0.2"
    assert type(model[0][1]) is sk.nn.BatchNorm2d
    assert model[0][1].activation == "relu"
    assert model[1].norm.activation is None
    assert type(model[0][2]) is nn.Identity
    assert type(model[3][1]) is nn.ReLU
    assert model[3][0].approximate == "tanh"
    assert str(sk.fuse(model)) == "nothing to fuse"


def test_training_goes_on_as_it_was():
    model, twin = make_model(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    torch.manual_seed(1)
    for step in range(6):
        if step == 2:
            sk.fuse(model)
        x, labels = torch.randn(7, 3, 8, 8), torch.randint(0, 5, (7,))
        for each, its in ((model, optimizer), (twin, other)):
            its.zero_grad()
            nn.functional.cross_entropy(each(x), labels).backward()
            its.step()
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert {name: id(b) for name, b in model.named_buffers()} == {name: id(b) for name, b in buffers.items()}
    assert list(model.state_dict()) == list(twin.state_dict())
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-4, rtol=1e-4)
    make_model().load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), twin.eval()(x), atol=1e-4, rtol=1e-4)


def test_mode_and_requires_grad_stay():
    model = make_model().eval()
    model[0][1].train()
    model[0][1].weight.requires_grad_(False)
    sk.fuse(model)
    assert model[0][1].training
    assert not model[0][2].training
    assert not model[2].training
    assert not model[0][1].weight.requires_grad


@pytest.mark.parametrize("place", [1, 2])
def test_hooks_go_on_and_prevent_merging(place):
    model = make_model()
    seen = []
    handle = model[0][place].register_forward_hook(lambda module, args, output: seen.append(output.min().item()))
    report = sk.fuse(model)
    assert report.merged == ()
    assert "0.1" in report.norms
    model(torch.randn(2, 3, 8, 8))
    assert len(seen) == 1
    assert (seen[0] < 0) == (place == 1)
    handle.remove()
    model(torch.randn(2, 3, 8, 8))
    assert len(seen) == 1


class OwnForward(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x)) + self[0](x)


def test_what_is_left_alone():
    class OwnNorm(nn.BatchNorm2d):
        pass

    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x
    model = nn.Sequential(OwnNorm(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), patched, nn.BatchNorm1d(3))
    before = list(model)
    report = sk.fuse(model)
    assert list(model) == before
    assert report == sk.fuse(model)
    assert report.norms == ()
    own = OwnForward(nn.BatchNorm2d(3), nn.ReLU())
    assert sk.fuse(own).merged == ()
    single = nn.BatchNorm2d(3)
    assert sk.fuse(single).norms == ()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        sk.fuse([single])


def test_shared_modules_stay_shared():
    norm, relu = nn.BatchNorm2d(3), nn.ReLU()
    model = nn.Sequential(nn.Sequential(norm, relu), nn.Sequential(norm, nn.Tanh()), nn.Sequential(relu))
    report = sk.fuse(model)
    assert report.norms == ("0.0",)
    assert report.merged == ()  # in one of its places no ReLU follows
    assert model[0][0] is model[1][0]
    relu = nn.ReLU()
    model = nn.Sequential(nn.BatchNorm2d(3), relu, nn.BatchNorm2d(3), relu, nn.Conv2d(3, 3, 1), relu)
    assert sk.fuse(model).merged == (("0", "1"), ("2", "3"))
    assert model[5] is relu


def test_already_fused_norms_take_in_relus():
    model = nn.Sequential(sk.nn.BatchNorm2d(3), nn.ReLU())
    report = sk.fuse(model)
    assert report.norms == ()
    assert str(report) == "0: BatchNorm2d takes in 1"


def test_copies_and_sparse_layers():
    model = make_model()
    sk.fuse(model)
    sk.sparsify(model, density=0.3)
    copied = copy.deepcopy(model)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(copied(x), model(x))
    assert copied[0][1].weight is not model[0][1].weight
    with sk.testing.forbid_dense(model, batch_sizes=[37]):
        model(torch.randn(37, 3, 8, 8)).sum().backward()
