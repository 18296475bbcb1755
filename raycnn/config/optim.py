"""The settings of the optimizer and of what it minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raycnn.config.base import LATER, Fraction, Section


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "lamb"] = "adamw"
    """Optimizer; lamb is for large batches."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    lr_scaling: Annotated[Literal["none", "linear", "sqrt"], LATER] = "none"
    """Scale optim.lr with train.global_batch, of which 256 leaves it as it is: linear (sgd), or by the root (lamb)."""
    stage_decay: Annotated[float, Field(gt=0, le=1), LATER] = 1.0
    """Learning rate of each stage as a share of that of the next one, the head being the last (discriminative
    learning rates); 1: the same in all."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of the weights; norms and biases are left out."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd and rmsprop, first beta of the others."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    schedule: Literal["cosine", "constant", "step", "polynomial", "onecycle", "plateau"] = "cosine"
    """Learning rate after the warmup, over the whole of train.epochs; onecycle: up, then down to nearly zero; plateau:
    lower when train.metric gets no better on the validation rows."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear warmup from zero; onecycle: how long it goes up, 0: for 30 % of the run."""
    factor: Annotated[float, Field(gt=0, lt=1), LATER] = 0.1
    """step, plateau: what the learning rate is multiplied by each time."""
    step_epochs: Annotated[Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] | None, LATER] = (
        None
    )
    """step: lower it every so many epochs, or after each of a list of epochs; null: at each third of the run."""
    power: Annotated[float, Field(gt=0), LATER] = 1.0
    """polynomial: power of the share of the run that is left; 1: linear."""
    low_momentum: Annotated[Fraction | None, LATER] = 0.85
    """onecycle: momentum (or first beta) at the peak of the learning rate, from and back to optim.momentum; null: it
    stays."""
    plateau_patience: Annotated[int, Field(ge=1), LATER] = 2
    """plateau: evaluations without a better train.metric after which the learning rate is lowered."""
    plateau_delta: Annotated[float, Field(ge=0), LATER] = 0.0
    """plateau: smallest change of train.metric that counts as better."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global norm of the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        return self


class DistillConfig(Section):
    """Learning from the answers of another run's network too: Hinton et al., 2015."""

    teacher: Annotated[str, Field(pattern=r"^(none|run:.+)$"), LATER] = "none"
    """none | run:NAME: its best checkpoint answers for the same views; it needs the same task and classes."""
    weight: Annotated[float, Field(gt=0, le=1), LATER] = 0.5
    """Share of the teacher's answers in the loss; the rest is that of the labels."""
    temperature: Annotated[float, Field(gt=0), LATER] = 2.0
    """What the logits of both are divided by before they are compared; above 1 small probabilities count more."""


class LossConfig(Section):
    """The loss of a row; see data.task."""

    name: Annotated[
        Literal["auto", "cross_entropy", "bce", "focal", "mse", "l1", "huber"]
        | Annotated[str, Field(pattern=r"^python/[A-Za-z0-9_.\-]+$")],
        LATER,
    ] = "auto"
    """auto: cross_entropy of one label, bce of yes and no, mse of a number. focal: what is right already counts little
    (Lin et al., 2017); mse of one label: the mean squared difference of the probabilities to the one-hot label.
    A loss that is given from Python is python/NAME, which is set by itself."""
    huber_delta: Annotated[float, Field(gt=0), LATER] = 1.0
    """huber: where squares become lines, in standard deviations of the training rows' numbers."""
    focal_gamma: Annotated[float, Field(ge=0), LATER] = 2.0
    """focal: power of (1 - p) before log p; 0 is cross entropy."""
    label_smoothing: Fraction = 0.0
    """Probability mass spread over all classes."""
    class_weights: Literal["none", "balanced", "effective"] = "none"
    """balanced: weight each class by the inverse of its share of the training rows; effective: by the inverse of its
    effective number of rows (Cui et al., 2019)."""
    effective_beta: Annotated[Fraction, LATER] = 0.999
    """class_weights: effective: 0 is like none, towards 1 like balanced."""
    logit_adjustment: Annotated[float, Field(ge=0), LATER] = 0.0
    """In training add so many times the log of a class's share of the training rows to its logit, so that the network
    itself answers as for classes of equal size (Menon et al., 2021); 1 is what they advise."""
    l1: Annotated[float, Field(ge=0), LATER] = 0.0
    """Times the sum of the absolute weights that train, norms and biases left out, is added to the loss."""
    l2: Annotated[float, Field(ge=0), LATER] = 0.0
    """Times the sum of the squares of the same weights is added to the loss."""
    distill: DistillConfig = DistillConfig()
