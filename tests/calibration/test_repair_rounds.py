"""Several nets, an optimiser each, in rounds: what is kept, and where a broken-off stage goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from calibration.checkpoint import fingerprint  # noqa: E402
from calibration.errors import OptionError  # noqa: E402
from calibration.repair.base import Sitting, StageRecord  # noqa: E402
from calibration.repair.rounds import run_rounds  # noqa: E402
from calibration.training import DivergedError  # noqa: E402


class Game:
    """Two nets, one by momentum and one by Adam, each after the other's answer; dropout draws too."""

    def __init__(self, break_at: int | None = None, loss: float | None = None) -> None:
        first, second = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
        for net in (first, second):
            for place, weight in enumerate(net.parameters()):
                nn.init.constant_(weight, 0.1 + place)
        self.nets = nn.ModuleList([first, second])
        self.optimisers = (torch.optim.SGD(first.parameters(), 0.1, momentum=0.9),
                           torch.optim.Adam(second.parameters(), 0.1))  # fmt: skip
        self.generator = torch.Generator().manual_seed(4)
        self.break_at, self.loss, self.played = break_at, loss, 0

    def play(self, number: int, tell: Callable[[int], None]) -> float:
        if number == self.break_at:
            raise KeyboardInterrupt
        self.nets.train()
        self.played += 1
        for turn, optimiser in enumerate(self.optimisers):
            given = torch.randn((4, 3), generator=self.generator)
            loss = (self.nets[turn](given) - self.nets[1 - turn](given).detach()).square().mean() + number
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            tell(4)
        return loss.item() if self.loss is None else self.loss

    def run(self, folder: Path | None, rounds: int = 4, identity: str = "game") -> StageRecord:
        return run_rounds(
            "game", self.nets, self.optimisers, self.play, rounds,
            images=8, generator=self.generator, sitting=Sitting(folder), identity=identity,
        )  # fmt: skip

    @property
    def state(self) -> str:
        return fingerprint([*self.nets.state_dict().values(), self.generator.get_state()])


@pytest.mark.parametrize("break_at", [0, 1, 3])
def test_a_broken_off_stage_goes_on_and_ends_as_an_unbroken_one(break_at: int, tmp_path: Path) -> None:
    whole = Game()
    record = whole.run(None)
    with pytest.raises(KeyboardInterrupt):
        Game(break_at).run(tmp_path)
    again = Game()
    resumed = again.run(tmp_path)
    assert again.played == 4 - break_at
    assert again.state == whole.state
    assert resumed.losses == record.losses
    assert record.images == resumed.images == 32
    assert not again.nets.training


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    first = Game()
    first.run(tmp_path)
    again = Game()
    again.run(tmp_path)
    assert (again.played, again.state) == (0, first.state)


def test_another_game_is_not_gone_on_with(tmp_path: Path) -> None:
    Game().run(tmp_path)
    with pytest.raises(OptionError, match=r"play"):
        Game().run(tmp_path, identity="another")
    with pytest.raises(OptionError, match=r"rounds"):
        Game().run(tmp_path, rounds=5)


def test_a_loss_that_is_no_number_ends_it_and_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"round 1 of 4"):
        Game(loss=float("nan")).run(tmp_path)
    again = Game()
    again.run(tmp_path)
    assert again.played == 4


def test_the_global_generator_is_as_it_was() -> None:
    game, before = Game(), torch.random.get_rng_state()
    game.run(None)
    assert torch.equal(torch.random.get_rng_state(), before)
