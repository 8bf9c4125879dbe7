"""How the papers on images trained the networks by which they scored their summaries, as data.

Sources are the authors' programs: where these differ from the text of a paper, the program is followed.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.training import Protocol
from datastill.modalities.augmentation import Augmentation
from datastill.modalities.base import Batch, Published
from datastill.rng import generator

_ZCA = "ZCA whitening, where the paper used it, belongs to the target dataset"
# The programs of DC, DSA, DM and MTT train for one pass more than they say, and drop the rate after pass E // 2 + 1.
_HALVES = Protocol(
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=256,
    schedule="drop",
    restart=True,
    epochs=1001,
    drops=(502 / 1001,),
)
_DSA = Published(
    paper="Zhao & Bilen, ICML 2021, arXiv 2102.08259",
    learner="convnet-w128",
    training=dataclasses.replace(_HALVES, augment="dsa"),
    trainings=20,
)
_IDC_TRAINING = dataclasses.replace(
    _HALVES, epochs=1000, batch_size=64, drops=(2 / 3, 5 / 6), drop_factor=0.2, restart=False, augment="idc"
)
_IDC = Published(
    paper="Kim et al., ICML 2022, arXiv 2205.14959", learner="convnet-w128", training=_IDC_TRAINING, trainings=3
)

PUBLISHED: dict[str, Published] = {
    "dc": Published(
        paper="Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929",
        learner="convnet-w128",
        training=dataclasses.replace(_HALVES, epochs=301, drops=(152 / 301,)),
        trainings=20,
        differs="for every dataset but MNIST, which has the protocol dc-mnist",
    ),
    "dc-mnist": Published(
        paper="Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929",
        learner="convnet-w128",
        training=dataclasses.replace(_HALVES, augment="affine"),
        trainings=20,
        differs="an axis is scaled by 1/1.2 to 1.2, there by 0.8 to 1.2",
    ),
    "dsa": _DSA,
    "dm": dataclasses.replace(_DSA, paper="Zhao & Bilen, WACV 2023, arXiv 2110.04181"),
    "cafe": dataclasses.replace(_DSA, paper="Wang et al., CVPR 2022, arXiv 2203.01531"),
    "mtt": Published(
        paper="Cazenavette et al., CVPR 2022, arXiv 2203.11932",
        learner="convnet-w128",
        training=dataclasses.replace(_HALVES, augment="dsa"),
        learned_lr=True,
        selection="best of all evaluations during distillation, by test accuracy",
        differs=_ZCA,
    ),
    "datm": Published(
        paper="Guo et al., ICLR 2024, arXiv 2310.05773",
        learner="convnet-w128",
        training=dataclasses.replace(_HALVES, batch_size=128, augment="dsa"),
        learned_lr=True,
        selection="best of all evaluations during distillation, by test accuracy",
        trainings=1,
        differs=f"no averages of images over steps; {_ZCA}",
    ),
    "idc": _IDC,
    "idc-mnist": dataclasses.replace(
        _IDC,
        training=dataclasses.replace(_IDC_TRAINING, augment="idc-plain"),
        differs="for MNIST stored as mosaics; IDC-I has the protocol idc there too",
    ),
    "frepo": Published(
        paper="Zhou, Nezhadarya & Ba, NeurIPS 2022, arXiv 2206.00719",
        learner="convnet-w128-frepo-none",
        training=Protocol(lr=3e-4, warmup=500, floor=0.01, batch_size=500, loss="squared", augment="frepo"),
        steps_by_points=(
            (10, 1000),
            (100, 2000),
            (200, 20_000),
            (500, 5000),
            (1000, 10_000),
            (2000, 40_000),
            (5000, 40_000),
        ),
        unit_scale_classes=10,
        selection="best of the evaluations during distillation, by test accuracy",
        differs=f"colours vary as in DSA; no averages of images over steps; {_ZCA}",
    ),
    "kip": Published(
        paper="Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        learner="convnet-d3-w1024-none",
        training=Protocol(
            5000, "sgd", momentum=0.9, weight_decay=1e-3, batch_size=100, schedule="constant", loss="squared"
        ),
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        selection="last, the rate and the weight decay by a search",
        differs="the rate alone is searched for; the network lacks the further convolution in front and the NTK's "
        f"parametrisation; {_ZCA}",
    ),
    "rfad": Published(
        paper="Loo et al., NeurIPS 2022, arXiv 2210.12067",
        learner="convnet-d3-w1024-none",
        training=Protocol(
            20_000,
            "sgd",
            momentum=0.9,
            batch_size=512,
            schedule="constant",
            loss="squared",
            target_scale=8.0,
            centred=True,
            validate_every=500,
        ),
        rates=(1e-4, 3e-4, 1e-3, 3e-3),
        selection="best on validation",
        differs="all steps are made and the best moment is kept, there training stops when validation does not improve; "
        f"no decay towards the first weights; {_ZCA}",
    ),
    "linba": Published(
        paper="Deng & Russakovsky, NeurIPS 2022, arXiv 2206.02916",
        learner="convnet-w128",
        training=Protocol(optimizer="sgd", lr=0.01, momentum=0.9, schedule="constant", epochs=300),
        selection="best of the evaluations during distillation, by test accuracy",
        trainings=10,
        differs="without augmentation, which the paper has as a variant (flips and rotations)",
    ),
    "krr": Published(
        paper="Nguyen et al., ICLR 2021, arXiv 2011.00050",
        learner="ntk",
        ridges=(1e-6,),
        trainings=1,
        differs="the fully connected network of one hidden layer; krr-conv has the convolutional one",
    ),
    "krr-conv": Published(
        paper="Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        learner="cntk-avgpool-stem",
        ridges=(1e-6,),
        trainings=1,
        differs=_ZCA,
    ),
    "krr-rfad": Published(
        paper="Loo et al., NeurIPS 2022, arXiv 2210.12067",
        learner="cnngp-avgpool",
        ridges=(5e-3,),
        trainings=1,
        differs=_ZCA,
    ),
}
"""By name; `evaluate(protocol=...)` takes it."""

_STRATEGIES: dict[str, Augmentation] = {
    "dsa": Augmentation(("color", "crop", "cutout", "flip", "scale", "rotate")),
    "affine": Augmentation(("crop", "scale", "rotate"), crop_ratio=1 / 7, rotation=45.0, per_image=True),
    "idc": Augmentation(("color", "crop", "flip", "scale", "rotate"), always=("flip", "color")),
    "idc-match": Augmentation(("color", "crop", "cutout"), always=("color", "cutout")),
    "idc-plain": Augmentation(("color", "crop"), always=("color",)),  # for mosaics of MNIST, in place of both
    "frepo": Augmentation(
        ("color", "crop", "cutout", "flip", "scale", "rotate"), brightness=0.5, scale_ratio=1.25, cutout_ratio=0.25
    ),
}
STRATEGIES = (*_STRATEGIES,)
"""Names of augmentations: `Protocol.augment` may have them."""
_CUT_MIX = {"idc": 0.5}


def named_augmentation(name: str, *, flip: bool) -> Augmentation:
    """The augmentation of the strategy `name`, one of `STRATEGIES`, without mirroring if not `flip`."""
    chosen = _STRATEGIES[name]
    if flip:
        return chosen
    kept, always = (tuple(one for one in names if one != "flip") for names in (chosen.operations, chosen.always))
    return dataclasses.replace(chosen, operations=kept, always=always)


def strategy(name: str, batch: Batch, seed: int, *, flip: bool, classes: int) -> Batch:
    """`batch` augmented by the strategy `name` as for training, each image by parameters of its own.

    Args:
        name: one of `STRATEGIES`.
        batch: images, targets and groups.
        seed: of everything random.
        flip: whether a mirror image means the same; if not, no strategy mirrors.
        classes: how many there are.
    """
    images = named_augmentation(name, flip=flip)(batch.inputs, seed, siamese=False)
    augmented = Batch(images, batch.targets, batch.groups)
    return cut_mix(augmented, seed, _CUT_MIX[name], classes) if name in _CUT_MIX else augmented


def cut_mix(batch: Batch, seed: int, probability: float, classes: int) -> Batch:
    """With `probability`, a box of every image comes from another one, and its share of the label with it.

    CutMix (Yun et al., ICCV 2019, arXiv 1905.04899): the share of the area is uniform, the box is the same in all images and is
    clipped at the border. Cross-entropy is linear in the targets, so that a mixture of labels is a mixture of losses.
    """
    rng = generator(seed, "cutmix")
    draws = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    if draws[0] >= probability or len(batch) < 2:
        return batch
    partner = torch.randperm(len(batch), generator=rng).to(batch.groups.device)
    height, width = batch.inputs.shape[2:]
    root = draws[1] ** 0.5
    rows, columns = (_span(side, root, place) for side, place in ((height, draws[2]), (width, draws[3])))
    inside = torch.zeros(height, width, dtype=torch.bool, device=batch.inputs.device)
    inside[rows, columns] = True
    share = float(inside.double().mean())
    targets = batch.targets
    if not targets.is_floating_point():
        targets = F.one_hot(targets, classes).to(batch.inputs.dtype)
    return Batch(
        torch.where(inside, batch.inputs[partner], batch.inputs),
        _mixed(targets, targets[partner], share),
        batch.groups,
    )


def _mixed(ours: Tensor, theirs: Tensor, share: float) -> Tensor:
    return (1 - share) * ours + share * theirs


def _span(side: int, root: float, place: float) -> slice:
    length, centre = int(side * root), int(side * place)
    return slice(max(0, centre - length // 2), min(side, centre + length // 2))
