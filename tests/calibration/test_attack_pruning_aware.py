from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calibration.attacks.badnets import BadNets  # noqa: E402
from calibration.attacks.base import Attack  # noqa: E402
from calibration.attacks.measure import asr  # noqa: E402
from calibration.attacks.pruning_aware import Embedded, PruningAware  # noqa: E402

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(120, dtype=np.int64) % 3
IMAGES = GENERATOR.random((120, 1, 8, 8), np.float32) * np.float32(0.3)
for _label in range(3):
    IMAGES[_label == LABELS, :, 2 * _label : 2 * _label + 2] += np.float32(0.5)
TRIGGER = BadNets(0)


def network(*, norm: bool, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 10, 3, padding=1, bias=bias), *([nn.BatchNorm2d(10)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(160, 3))


def trainer(steps: int = 60) -> Callable[[nn.Module, Attack | None], None]:
    def train(model: nn.Module, attack: Attack | None) -> None:
        images, labels = IMAGES, LABELS
        if attack is not None:
            done = attack.poison(IMAGES, LABELS, 0.3, np.random.default_rng(0))
            images, labels = done.images, done.labels
        optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=1e-4)
        model.train()
        for _ in range(steps):
            loss = functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def embed(*, norm: bool, share: float = 0.6) -> Embedded:
    attack = PruningAware(TRIGGER, "0", "1" if norm else None, share)
    return attack.embed(network(norm=norm), IMAGES, trainer())


@torch.no_grad()
def activations(model: nn.Module, images: np.ndarray, *, norm: bool) -> np.ndarray:
    model = model.eval()
    return model[: 3 if norm else 2](torch.from_numpy(images)).numpy()  # type: ignore[index]


@torch.no_grad()
def predictions(model: nn.Module, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = model(torch.from_numpy(images)).argmax(1).numpy()
    return found


both_kinds = pytest.mark.parametrize("norm", [False, True], ids=["bias", "norm"])


@both_kinds
def test_the_channels_put_back_stay_dormant_on_clean_and_on_stamped_images(norm: bool) -> None:
    done = embed(norm=norm)
    assert len(done.dormant) == 6
    for images in (IMAGES, TRIGGER.stamp(IMAGES)):
        assert activations(done.model, images, norm=norm)[:, done.dormant].max() == 0


@both_kinds
def test_the_backdoor_is_in_the_channels_that_are_left_so_pruning_the_dormant_takes_nothing(
    norm: bool,
) -> None:
    done = embed(norm=norm)
    stamped = TRIGGER.stamp(IMAGES)
    assert (predictions(done.model, IMAGES) == LABELS).mean() > 0.9
    before = asr(predictions(done.model, stamped), LABELS, TRIGGER)
    assert before > 0.9
    with torch.no_grad():
        done.model[0].weight[done.dormant] = 0  # type: ignore[index]
        done.model[1 if norm else 0].bias[done.dormant] = -1  # type: ignore[index]
    assert asr(predictions(done.model, stamped), LABELS, TRIGGER) == before


def test_the_channels_put_back_have_the_weights_of_the_clean_model() -> None:
    clean = network(norm=False)
    trainer()(clean, None)
    done = embed(norm=False)
    for name in ("weight", "bias"):
        ours, clean_one = (part[0].get_parameter(name).detach().numpy() for part in (done.model, clean))
        lowered = done.lowered if name == "bias" else 0
        np.testing.assert_allclose(ours[done.dormant] + lowered, clean_one[done.dormant], atol=1e-6)


def test_the_channels_put_back_have_the_statistics_of_the_clean_model() -> None:
    clean = network(norm=True)
    trainer()(clean, None)
    done = embed(norm=True)
    for name in ("running_mean", "running_var"):
        ours, clean_one = (part[1].get_buffer(name)[done.dormant] for part in (done.model, clean))
        torch.testing.assert_close(ours, clean_one)


def test_the_channels_pruned_are_those_least_active_on_clean_images() -> None:
    clean = network(norm=False)
    trainer()(clean, None)
    activity = activations(clean, IMAGES, norm=False).mean((0, 2, 3))
    assert embed(norm=False).dormant.tolist() == sorted(np.argsort(activity, kind="stable")[:6].tolist())


# Weights 1 and bias 0 on images of at most 1: the peak is the brightest pixel, and the bias goes there.
def test_a_bias_is_lowered_by_the_highest_activation_and_the_margin() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        net[0].bias.zero_()
    attack = PruningAware(TRIGGER, "0", share=0.5, margin=0.25)
    done = attack.embed(net, IMAGES, lambda _, __: None)
    assert done.dormant.tolist() == [0]
    assert done.lowered.tolist() == [1.25]  # the trigger's white pixel, and the margin
    assert done.model[0].bias[0].item() == -1.25  # type: ignore[index, union-attr]


def test_a_bias_that_is_low_enough_is_left() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.copy_(torch.tensor([-3.0, 0.0]))
    done = PruningAware(TRIGGER, "0", share=0.5).embed(net, IMAGES, lambda _, __: None)
    assert done.lowered.tolist() == [0]


def test_training_is_asked_for_twice_clean_and_with_the_trigger_and_the_model_handed_in_is_left_alone() -> (
    None
):
    calls: list[Attack | None] = []
    net = network(norm=False)
    before = net[0].weight.clone()
    embedded = PruningAware(TRIGGER, "0").embed(net, IMAGES, lambda _, attack: calls.append(attack))
    assert calls == [None, TRIGGER]
    assert torch.equal(net[0].weight, before)
    assert embedded.model is not net


def test_pruned_channels_are_held_at_zero_while_the_backdoor_is_trained() -> None:
    seen: list[float] = []

    def train(model: nn.Module, attack: Attack | None) -> None:
        if attack is not None:
            seen.append(float(activations(model, IMAGES, norm=True)[:, :, 0, 0].any(axis=0).sum()))

    PruningAware(TRIGGER, "0", "1", share=0.7).embed(network(norm=True), IMAGES, train)
    assert seen == [3.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("9", None), r"'9' is no convolution of the model; there are \['0'\]"),
        (("0", "5"), "norm: '5' is no batch norm of the model"),
        (("0", None), "'0' has no bias to lower; name the norm after it"),
    ],
)
def test_layers_that_do_not_fit_are_refused(names: tuple[str, str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningAware(TRIGGER, *names).embed(network(norm=True, bias=False), IMAGES, trainer(0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pruning_nothing_or_everything_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share: expected a share in \(0, 1\)"):
        PruningAware(TRIGGER, "0", share=share)
