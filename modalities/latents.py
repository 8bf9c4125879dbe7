"""A summary that stores latent codes: a frozen decoder, which the user gives, makes its points.

The idea of IT-GAN (Zhao & Bilen 2022, arXiv 2204.07513), where the decoder is a generator trained on the target dataset and the
codes begin at inversions of real images. It wraps a summary of any modality, so every objective optimises it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datastill.errors import InputError, check_count, require
from datastill.modalities.base import Batch, Summary


class LatentSummary(Summary):
    """A summary whose points are `decoder(codes)`.

    Args:
        points: a summary of the modality, which says what the points are and how they are exported. Its one parameter of the
            role `role` is what the decoder makes; its other parameters, such as learned labels, stay as they are.
        decoder: maps codes (n, ...) to that parameter, for images normalised pixels (n, c, h, w). It is frozen, in eval mode,
            and counts in `nbytes`: without it the codes are worth nothing.
        codes: (n, ...) first codes, n as many as the decoder makes points of; or their shape without n: then they begin as
            standard normals.
        rng: of codes that are drawn.
        role: of the parameter.
        inversion_steps: Adam steps by which the codes are moved before anything else, so that the decoder gives what `points`
            begins from (mean squared error); 0 leaves them where they are.
        inversion_lr: learning rate of those steps.

    Raises:
        InputError: if the decoder's output does not have the shape of the points, or is not differentiable in the codes.
    """

    def __init__(
        self,
        points: Summary,
        decoder: nn.Module,
        codes: Tensor | tuple[int, ...],
        *,
        rng: torch.Generator,
        role: str = "points",
        inversion_steps: int = 500,
        inversion_lr: float = 0.05,
    ) -> None:
        super().__init__()
        check_count("inversion_steps", inversion_steps, least=0)
        require(inversion_lr > 0, f"inversion_lr must be positive, got {inversion_lr!r}.")
        require(
            not points.folds, "A summary with storage='preconditioned' cannot have latents; ask for storage='pixels'."
        )
        roles = points.parameter_groups()
        require(
            len(roles.get(role, [])) == 1,
            f"role must name one parameter of the summary, got {role!r}; it has "
            + ", ".join(f"{name!r} ({len(members)})" for name, members in roles.items())
            + ".",
        )
        (made,) = roles[role]
        target = made.detach().clone()
        self.role = role
        self.name = next(name for name, value in points.named_parameters() if value is made)
        self.points = points
        self.decoder = decoder.eval().requires_grad_(False)
        if not isinstance(codes, Tensor):
            codes = torch.randn(len(target), *codes, generator=rng)
        self.codes = nn.Parameter(codes.detach().clone().to(target))
        self._check(target)
        made.requires_grad_(False)
        self._invert(target, inversion_steps, inversion_lr)
        # Exported points are clamped and rounded; and what is paid for are the codes and the decoder.
        self.exact_export = False
        self.signed_labels = points.signed_labels

    def _decoded(self) -> Tensor:
        decoded: Tensor = self.decoder(self.codes)
        return decoded

    def _check(self, target: Tensor) -> None:
        try:
            decoded = self._decoded()
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"The decoder cannot read codes of shape {tuple(self.codes.shape)}: {error}") from error
        require(
            decoded.shape == target.shape,
            f"The decoder must give points of shape {tuple(target.shape)} from codes {tuple(self.codes.shape)}, "
            f"it gives {tuple(decoded.shape)}.",
        )
        require(decoded.requires_grad, "The decoder's output must be differentiable in the codes; it has no gradient.")

    def _invert(self, target: Tensor, steps: int, lr: float) -> None:
        optimizer = torch.optim.Adam([self.codes], lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            (self._decoded() - target).square().mean().backward()
            optimizer.step()
        self.codes.grad = None

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """The points, differentiable in the codes."""
        with self._in_place():
            batch: Batch = self.points(rng)
            return batch

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The wrapped summary with what the decoder makes as its parameter."""
        path, _, attribute = self.name.rpartition(".")
        owner = self.points.get_submodule(path)
        parameter = owner._parameters[attribute]
        # Among the parameters, where what rounds all of them (a codec) finds it too.
        owner._parameters[attribute] = self._decoded()  # type: ignore[assignment]
        try:
            yield
        finally:
            owner._parameters[attribute] = parameter

    def plan(self, steps: int) -> None:
        """The wrapped summary's."""
        self.points.plan(steps)

    def penalty(self) -> Tensor | None:
        """The wrapped summary's, of the decoded points."""
        with self._in_place():
            return self.points.penalty()

    @torch.no_grad()
    def export(self) -> Any:
        """The decoded points as a native dataset; the codes are in `codes`."""
        self._write()
        return self.points.export()

    @torch.no_grad()
    def project_(self) -> None:
        """What the wrapped summary asks of its other parameters; the codes are free."""
        self._write()
        self.points.project_()

    def _write(self) -> None:
        dict(self.points.named_parameters())[self.name].copy_(self._decoded())

    def relabel_(self, targets: Tensor) -> None:
        """Make the learned labels these distributions (n, classes), in place."""
        self.points.relabel_(targets)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The roles of the wrapped summary, with the codes in place of what the decoder makes."""
        return {**self.points.parameter_groups(), self.role: [self.codes]}

    @property
    def num_points(self) -> int:
        """How many points."""
        return self.points.num_points

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, of the decoder, and of what the wrapped summary holds beside the decoded points."""
        decoded = dict(self.points.named_parameters())[self.name]
        return super().nbytes - decoded.numel() * decoded.element_size()
