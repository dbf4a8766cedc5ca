"""``guard repair``: from a model and clean images to a repaired model of the same face.

::

    lay out ─→ repair ─→ measure ─→ export ─→ write
    model,      stage by stage;   before and    as it came,   model.onnx, repair.json,
    images,     each is kept      after, on     parity        repair.md,
    triggers                      held images   checked       repair.html

What is kept lies in ``<out>/partial``, named by all that the repaired weights depend on: a repair that was
broken off goes on from there, and it is removed once the repaired model is written; what others were broken
off at, or a scan into the same folder, stays.
"""

from __future__ import annotations

import platform
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from calibration.command import going_on_from
from calibration.errors import OptionError
from calibration.evaluation.fallen import Fallen, fallen_classes
from calibration.evaluation.measuring import Answer, Measured, Task, measure
from calibration.evaluation.numbers import agreement
from calibration.export import ExportRecord, export_onnx
from calibration.intake import model_rows
from calibration.prediction import device_of, predict
from calibration.repair.base import RepairResult, Sitting
from calibration.repair.html_report import to_html
from calibration.repair.options import MODEL, PARTIAL, REPORT, DeviceName, RepairOptions
from calibration.repair.repaired import Repaired
from calibration.repair.report import to_json, to_markdown
from calibration.repair.workbench import Laid, lay_out
from calibration.report import machine, package_versions
from guard import __version__
from guard.artifact.manifest import sha256_of

__all__ = ["repair_model"]

_PARITY_IMAGES = 64


def repair_model(options: RepairOptions) -> tuple[Repaired, tuple[Path, ...]]:
    """Repair a model and write it; return what was done and the files.

    Raises:
        GuardError: Model, images or options are not fit, or the repair diverges; nothing is written then but
            what the same command goes on from.
        BrokenOffError: In place of an interrupt, if there is anything that the same command goes on from.
    """
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    laid = lay_out(options)
    folder = options.out / PARTIAL / f"{options.method}-{laid.digest[:16]}"
    if options.anew:
        shutil.rmtree(folder, ignore_errors=True)
    _make_folder(folder)
    with going_on_from(folder, kept=lambda: any(folder.iterdir()), anew=options.anew):
        result = options.make().repair(
            laid.workable.module.to(device),
            laid.supplies,
            generator=torch.Generator().manual_seed(options.seed),
            sitting=Sitting(folder, options.quiet),
        )
        before, after = _measured(laid, laid.workable.module), _measured(laid, result.model)
        data = _exported(laid, result, options)
    repaired = Repaired(
        options=options,
        laid=laid,
        result=result,
        sha256=sha256_of(data),
        before=before,
        after=after,
        agreement=None if before is None or after is None else agreement(before.answers, after.answers),
        fallen=_fallen(laid, before, after),
        device=str(device_of(laid.workable.module)),
        machine=machine(),
        versions={**package_versions(), "torch": torch.__version__, "python": platform.python_version()},
        started=started,
        seconds=time.perf_counter() - start,
    )
    places = _write(repaired, data)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others that were broken off are still to be gone on with
        folder.parent.rmdir()
    return repaired, places


def _device(name: DeviceName) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise OptionError("--device cuda was asked for, but torch finds no CUDA device; give cpu or auto")
    return torch.device("cuda" if name != "cpu" and there else "cpu")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out: {folder} cannot be made ({error.strerror}); choose another") from error


def _measured(laid: Laid, network: nn.Module) -> Measured | None:
    """Return what a network does on the held images."""
    held = laid.supplies.held
    if not len(held):
        return None
    task = Task(
        take=lambda rows: held.images[torch.from_numpy(rows)].numpy(),
        labels=held.labels.numpy(),
        labelled=laid.supplies.labelled,
        classes=laid.supplies.classes,
        triggers=laid.known,
    )
    return measure(_answering(network), task)


def _fallen(laid: Laid, before: Measured | None, after: Measured | None) -> tuple[Fallen, ...]:
    if before is None or after is None or not laid.supplies.labelled:
        return ()
    return fallen_classes(before.predictions, after.predictions, laid.supplies.held.labels.numpy())


def _answering(network: nn.Module) -> Answer:
    def answer(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = predict(network, torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return answer


def _exported(laid: Laid, result: RepairResult, options: RepairOptions) -> bytes:
    """Return the repaired model as a file that takes and gives what its source did."""
    source = laid.model
    like = (
        replace(source.signature, classes=laid.supplies.classes) if source.origin is None else source.origin
    )
    record = ExportRecord(f"guard {__version__}", options.method, source.source_sha256)
    images = laid.supplies.held.images[:_PARITY_IMAGES]
    rows = model_rows(images.numpy(), source.signature) if len(images) else None
    restored = laid.workable.restored(result.model.cpu())
    return export_onnx(restored, like, record, images=rows).SerializeToString(deterministic=True)


def _write(repaired: Repaired, data: bytes) -> tuple[Path, ...]:
    """Write model and reports, each whole or not at all."""
    out = repaired.options.out
    written = {
        MODEL: data,
        REPORT: to_json(repaired).encode(),
        "repair.md": to_markdown(repaired).encode(),
        "repair.html": to_html(repaired).encode(),
    }
    for name, content in written.items():
        partial = out / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(out / name)
    return tuple(out / name for name in written)
