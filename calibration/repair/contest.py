"""The game of data-free backdoor erasing: a student, a generator of images and one of triggers, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.prediction import autocast, device_of
from calibration.recipe import Precision
from calibration.repair.base import Supplies
from calibration.repair.dhbe_losses import apart, logits_and_gap, total_variation
from calibration.repair.image_generator import ImageGenerator, in_values
from calibration.repair.trigger_generator import TriggerGenerator, draw_corners, paste
from calibration.schedules import Schedule

__all__ = ["Contest", "Rules"]

_Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Rules:
    """How the game is played; see the options of the repair, which these are.

    Args:
        batch: Images a step.
        iterations: Turns of an epoch.
        student_steps: Of a turn.
        trigger_steps: Of a turn, for the generator of triggers; that of images has one.
        pool: Images invented for an epoch; 0 for fresh ones at each step.
        trigger_weight: Of the student's answer to triggers in its loss.
        smoothness: Of the total variation in the loss of the images.
        prior: Of what is known of the data, in the same.
        one_place: Whether all triggers of a batch are in one place.
        clip: Longest gradient of the student.
        frozen_statistics: Whether the student's batch norms keep theirs.
        precision: What the networks compute in.
        schedule: The factor on the rates of all nets.
    """

    batch: int
    iterations: int
    student_steps: int
    trigger_steps: int
    pool: int
    trigger_weight: float
    smoothness: float
    prior: float
    one_place: bool
    clip: float
    frozen_statistics: bool
    precision: Precision
    schedule: Schedule

    @property
    def steps(self) -> int:
        """Steps of the student in an epoch."""
        return self.iterations * self.student_steps


class Contest:
    """The nets, and the steps by which each is changed.

    Args:
        teacher: The network as it was; asks for no gradients.
        student: What is repaired.
        images: Invents images.
        triggers: Invents triggers.
        supplies: Shape, classes and value range.
        rules: How it is played.
        generator: Draws everything.
    """

    def __init__(
        self,
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        images: ImageGenerator,
        triggers: TriggerGenerator,
        supplies: Supplies,
        rules: Rules,
        generator: torch.Generator,
    ) -> None:
        self.teacher, self.student, self.images, self.triggers = teacher, student, images, triggers
        self.supplies, self.rules, self.generator = supplies, rules, generator
        self.device = device_of(student)
        self.epochs = 1
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.rates: dict[str, float] = {}

    def begin(self, optimisers: dict[str, torch.optim.Optimizer], epochs: int) -> nn.Module:
        """Say by what the nets ``student``, ``images`` and ``triggers`` are changed; return all as one."""
        self.optimisers, self.epochs = optimisers, epochs
        self.rates = {name: float(one.param_groups[0]["lr"]) for name, one in optimisers.items()}
        return nn.ModuleDict({name: getattr(self, name) for name in ("student", "images", "triggers")})

    def play(self, epoch: int, tell: Callable[[int], None]) -> float:
        """Play an epoch, and return the student's mean loss."""
        rules, total = self.rules, torch.zeros((), device=self.device)
        self._enter_training()
        pool = self._invent_pool()
        for turn in range(rules.iterations):
            for step in range(rules.student_steps):
                self._set_rates(epoch * rules.steps + turn * rules.student_steps + step)
                images, answers = self._take(pool)
                total += self.step_student(images, answers)
                tell(2 * rules.batch)
            self.step_images(against=True)
            for _ in range(rules.trigger_steps):
                self.step_triggers(self._take(pool)[0])
        return float(total) / rules.steps

    def prime(self, steps: int, tell: Callable[[int], None]) -> float:
        """Draw the invented images to what the teacher knows of its data; return the mean loss."""
        self.images.train()
        total = torch.zeros((), device=self.device)
        for _ in range(steps):
            total += self.step_images(against=False)
            tell(self.rules.batch)
        return float(total) / steps

    def step_images(self, *, against: bool) -> Tensor:
        """Change the image generator once, against the student or by what the teacher knows alone."""
        rules, (noise, labels) = self.rules, self._draw(self.rules.batch)
        with autocast(self.device, rules.precision):
            drawn = self.images(noise, labels)
            images = self._in_values(drawn)
            loss = rules.smoothness * total_variation(drawn)
            if rules.prior:
                answers, gap = logits_and_gap(self.teacher, images)
                known = functional.cross_entropy(answers.float(), labels) + gap
                loss = loss + (rules.prior if against else 1.0) * known
            else:
                answers = self.teacher(images)
            if against:
                loss = loss - apart(self.student(images), answers)
        self._descend("images", loss)
        return loss.detach()

    def step_student(self, images: Tensor, answers: Tensor) -> Tensor:
        """Change the student once, towards the teacher's answers and to see through triggers."""
        with autocast(self.device, self.rules.precision):
            with torch.no_grad():
                stamped = self.stamped(images)
            plain, triggered = self.student(images), self.student(stamped)
            loss = apart(plain, answers) + self.rules.trigger_weight * apart(triggered, plain.detach())
        self._descend("student", loss)
        return loss.detach()

    def step_triggers(self, images: Tensor) -> None:
        """Change the triggers' generator once, against the student."""
        with autocast(self.device, self.rules.precision):
            with torch.no_grad():
                plain = self.student(images)
            loss = -apart(self.student(self.stamped(images)), plain)
        self._descend("triggers", loss)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        if name == "student" and self.rules.clip:
            nn.utils.clip_grad_norm_(parameters, self.rules.clip)
        optimiser.step()
        optimiser.zero_grad()

    def stamped(self, images: Tensor) -> Tensor:
        """Return images with invented triggers on."""
        noise, _ = self._draw(len(images))
        sides = (self.supplies.shape[1], self.supplies.shape[2])
        count = 1 if self.rules.one_place else len(images)
        corners = draw_corners(count, sides, self.triggers.size, self.generator)
        reach = (self.supplies.high - self.supplies.low).to(self.device)
        return paste(images, self.triggers(noise), corners, reach)

    @torch.no_grad()
    def _invent(self, count: int) -> tuple[Float32[Tensor, "n c h w"], Float32[Tensor, "n k"]]:
        with autocast(self.device, self.rules.precision):
            images = self._in_values(self.images(*self._draw(count)))
            return images, self.teacher(images).float()

    def _invent_pool(self) -> tuple[Tensor, Tensor] | None:
        if not self.rules.pool:
            return None
        lots = [self._invent(self.rules.batch) for _ in range(-(-self.rules.pool // self.rules.batch))]
        return torch.cat([lot[0] for lot in lots]), torch.cat([lot[1] for lot in lots])

    def _take(self, pool: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return a batch of images and the teacher's answers."""
        if pool is None:
            return self._invent(self.rules.batch)
        rows = torch.randint(len(pool[0]), (self.rules.batch,), generator=self.generator).to(self.device)
        return pool[0][rows].contiguous(memory_format=torch.channels_last), pool[1][rows]

    def _draw(self, count: int) -> tuple[Float32[Tensor, "n z"], Int64[Tensor, " n"]]:
        noise = torch.randn((count, self.images.latent), generator=self.generator)
        labels = torch.randint(self.supplies.classes, (count,), generator=self.generator)
        return noise.to(self.device), labels.to(self.device)

    def _in_values(self, drawn: Tensor) -> Tensor:
        images = in_values(drawn, self.supplies.low, self.supplies.high)
        return images.contiguous(memory_format=torch.channels_last)

    def _enter_training(self) -> None:
        for net in (self.student, self.images, self.triggers):
            net.train()
        for layer in self.student.modules():
            if self.rules.frozen_statistics and isinstance(layer, _Norm):
                layer.eval()

    def _set_rates(self, step: int) -> None:
        factor = self.rules.schedule.factor(step, self.epochs * self.rules.steps)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.rates[name] * factor
