"""KIP with one hidden layer on 100 CIFAR-10 images, step by step beside the trace of the authors' notebook.

    python benchmarks/kip_trace.py                       CIFAR-10 as JPEG files from ../shared/data, three seeds
    python benchmarks/kip_trace.py --data FOLDER         a folder with train/ and test/, each with one subfolder a class
    python benchmarks/kip_trace.py --seeds 0 --steps 20  a short one

Settings are the notebook's: pixels standardised by channel without whitening, never clamped; the NTK of one hidden layer with
sigma_w^2 = 2 and sigma_b^2 = 0.01, in float64; ridge 1e-6; Adam at 0.04; 500 real images a class at each step; fixed labels.
Nothing is selected: test accuracy and loss (half the mean squared error) are read off at fixed steps. The notebook draws targets
from all 50,000 training images, here a tenth of them is set apart as everywhere. Beside it stand other random subsets of 100
images, which is what step 0 is of.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, image_data, write_results

from datastill.evaluation import format_table
from datastill.loop import Event, distill
from datastill.modalities.base import Batch, Modality
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.rng import generator

REFERENCE = {0: 0.243, 20: 0.414, 100: 0.454, 300: 0.467}  # test accuracy
REFERENCE_LOSS = {0: 0.0488, 300: 0.0358}
RIDGE = 1e-6
SUBSETS = 10


@torch.no_grad()
def measured(modality: Modality, batch: Batch) -> dict[str, float]:
    """Test accuracy and loss of the ridge regression on `batch`."""
    machine = modality.fit_kernel(batch.detach(), modality.kernel("ntk"), [RIDGE])
    right, loss, points = 0, 0.0, 0
    for held in modality.held_out("test"):  # type: ignore[attr-defined]
        outputs = machine(held.inputs)
        right += int(modality.correct(outputs, held.targets).sum())
        loss += len(held) * float(modality.ridge_loss(outputs, held.targets))
        points += len(held)
    return {"accuracy": right / points, "loss": loss / points}


def trace(modality: Modality, seed: int, steps: int) -> dict[str, Any]:
    """One run: what was measured at the steps of the reference, and seconds until then, without those of measuring."""
    summary = modality.summary([10] * modality.num_groups, rng=generator(seed, "summary"), clamp=False)
    objective = KernelRidge(kernel="ntk", depth=1, ridge=RIDGE, real_size=500)
    found = {0: {**measured(modality, summary()), "seconds": 0.0}}
    spent = 0.0

    def measure(event: Event) -> None:
        nonlocal spent
        if event.kind == "step" and (event.step in REFERENCE or event.step == steps):
            began = time.perf_counter()
            found[event.step] = {**measured(modality, event.summary()), "seconds": event.record["seconds"] - spent}
            spent += time.perf_counter() - began
            print(f"  seed {seed}, step {event.step}: {found[event.step]}", flush=True)

    distill(
        modality,
        summary,
        objective,
        steps=steps,
        lr=0.04,
        seed=seed,
        validate_every=0,
        callbacks=[measure],
        progress=False,
    )
    return {"seed": seed, "trace": found}


def unpacked(path: Path, folder: str) -> Path:
    """The folder itself, or what the tar file has in it."""
    if path.is_dir():
        return path
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


def main() -> None:
    """Run the seeds, print the trace beside the reference's and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "images" / "cifar10_jpeg.tar")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=max(REFERENCE))
    parser.add_argument("--device", help="where to compute")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kip_trace.json")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        modality = image_data(str(unpacked(options.data, folder))).to(options.device, torch.float64)
        subsets = []
        for number in range(SUBSETS):
            drawn = modality.subset([10] * modality.num_groups, rng=generator("subset", number))
            subsets.append(measured(modality, modality.read(drawn)))
        runs = [trace(modality, seed, options.steps) for seed in options.seeds]

    body = []
    for step in runs[0]["trace"]:
        scores = [run["trace"][step]["accuracy"] for run in runs]
        mean = statistics.fmean(scores)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        body.append(
            [
                str(step),
                f"{REFERENCE[step]:.3f}" if step in REFERENCE else "-",
                f"{mean:.3f} ± {spread:.3f}",
                f"{mean - REFERENCE[step]:+.3f}" if step in REFERENCE else "-",
                f"{REFERENCE_LOSS[step]:.4f}" if step in REFERENCE_LOSS else "-",
                f"{statistics.fmean(run['trace'][step]['loss'] for run in runs):.4f}",
                f"{statistics.fmean(run['trace'][step]['seconds'] for run in runs):.0f}",
            ]
        )
    print(f"random subsets of 100: {statistics.fmean(one['accuracy'] for one in subsets):.3f}")
    head = ["step", "reference", "accuracy", "difference", "loss there", "loss", "seconds"]
    print(format_table(head, body))
    options_used = {"ridge": RIDGE, "lr": 0.04, "real_size": 500, "points": 100, "bytes": 100 * 3 * 32 * 32 * 4}
    write_results(
        options.out,
        {
            "data": options.data.name,
            "settings": options_used,
            "threads": torch.get_num_threads(),
            "reference": {"accuracy": REFERENCE, "loss": REFERENCE_LOSS},
            "runs": runs,
            "random": subsets,
        },
    )


if __name__ == "__main__":
    main()
