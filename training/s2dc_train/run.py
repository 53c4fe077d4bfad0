"""One pretraining run: Lightning's Trainer, its callbacks and the files of the run folder."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from napari_s2dc import __version__
from napari_s2dc.engine.encoders import remember_local_run
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.files import replace_atomically, why_not_writable, write_with_torch
from s2dc_train.callbacks import MetricsFile, OrderlyStop, Progress
from s2dc_train.checks import check_configuration, check_fit, read_training_checkpoint
from s2dc_train.compiling import compile_encoders
from s2dc_train.config import RunConfig, changed_settings
from s2dc_train.data import S2DCDataModule
from s2dc_train.interruption import StopRequest, is_first_process
from s2dc_train.module import S2DCModule
from s2dc_train.timing import WaitClock
from s2dc_train.validation import Validation

_CACHE_TIMEOUT = timedelta(hours=6)

LAST = Path("checkpoints") / "last.ckpt"

# Chatter that says nothing about this program, by the beginning of its text.
_KNOWN_WARNINGS = (
    r".*does not have many workers",
    r".*isinstance\(treespec, LeafSpec\)",
    r"Checkpoint directory .* exists and is not empty",
    r"The dirpath has changed",
    r"You're resuming from a checkpoint that ended before the epoch ended",  # samples are numbered
    r"The number of training batches .* is smaller than the logging interval",
    r"The `srun` command is available",
    r".*GPU available but not used",
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that appear whole or not at all, whatever kills the process."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write to a neighbouring file, flush it to disk and rename it."""
        write_with_torch(Path(path), checkpoint)


def _accelerator(asked: str) -> str:
    if asked == "mps":
        raise ConfigurationError(
            "Training needs 64-bit numbers, which Apple's graphics (mps) do not have.",
            "Set --trainer.accelerator cpu.",
        )
    if asked == "auto":
        asked = "gpu" if torch.cuda.is_available() else "cpu"
    return "cuda" if asked == "gpu" else asked  # on a Mac, Lightning's gpu would be mps


def _precision(config: RunConfig) -> str:
    if config.trainer.precision != "auto":
        return config.trainer.precision
    wanted = config.trainer.accelerator in ("auto", "gpu", "cuda")
    if wanted and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory taken so far: of the device if it is a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, else kilobytes


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def encoder_metadata(
    config: RunConfig, data: S2DCDataModule, summary: dict[str, Any]
) -> dict[str, Any]:
    """Return what an encoder file says about its training."""
    return {
        "name": Path(config.out).resolve().name,
        "preprocessing": {"preset": config.data.preset, "crop_size": config.data.crop_size},
        "spacing_mm": list(config.data.spacing_mm) or None,
        "token_stage": config.model.token_stage,
        "training": {
            "volumes": len(data.train_entries),
            "steps": summary["steps"],
            "synthetic_share": config.data.synthetic_share,
            "cross_contrast": bool(config.data.synthetic_share) and config.data.cross_contrast,
            "seconds": summary["seconds"],
            # Not that of other weights, when a signal left no time to measure these.
            "match_accuracy": (
                summary["match_accuracy_last"]
                if summary["measured_after_steps"] == summary["steps"]
                else None
            ),
            "seed": config.seed,
        },
        "version": __version__,
    }


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn a full or closed disk into a sentence; other errors are faults and keep their trace."""
    try:
        yield
    except OSError as error:
        place = Path(error.filename or "").resolve()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and out.resolve() not in place.parents:
            raise
        raise S2DCError(
            f"Cannot write to the run folder {out}: {error.strerror or error}.",
            "Free some space or choose another folder; a saved run goes on with --ckpt last.",
        ) from error


def _check_folder(out: Path) -> None:
    """Refuse a run folder that cannot be written, before every scan is read."""
    if reason := why_not_writable(out.absolute() / LAST):
        raise S2DCError(f"Cannot write to the run folder {out}: {reason}.", "Choose another --out.")


def last_checkpoint(out: Path) -> Path | None:
    """Newest checkpoint of a run folder, None without one.

    Under SLURM, Lightning saves beside ``last.ckpt`` when the job is about to be requeued.
    """
    found = [out / LAST, *(out / LAST.parent).glob("hpc_ckpt_*.ckpt")]
    found = [path for path in found if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _finished_steps(out: Path) -> int:
    """Read how far the finished encoder of a run folder was trained; -1 without one."""
    try:
        steps = int(json.loads((out / "summary.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1
    return steps if (out / "encoder.safetensors").is_file() else -1


def _begin_folder(config: RunConfig, out: Path) -> None:
    """Write ``config.yaml`` and remove what a kill while saving has left."""
    for leftover in (out / LAST.parent).glob(".part-*"):
        leftover.unlink(missing_ok=True)
    with replace_atomically(out / "config.yaml") as temporary:
        text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")


def train(
    config: RunConfig, *, resume: Path | None = None, request: StopRequest | None = None
) -> dict[str, Any]:
    """Pretrain an encoder and write the run folder.

    Parameters
    ----------
    config : RunConfig
        Every setting.
    resume : Path, optional
        Checkpoint to go on from.
    request : StopRequest, optional
        Notes SIGTERM and Ctrl-C; one of its own is used when missing.

    Returns
    -------
    dict
        The content of ``summary.json``, with ``stopped`` telling why the run ended before its last
        step: "" (it did not), "signal" or "time".

    Raises
    ------
    S2DCError
        Settings, scans or checkpoint are not usable, or the disk is full.
    Interrupted
        A signal came before the first step; nothing had to be saved.
    """
    out = Path(config.out)
    with (
        request or StopRequest() as request,
        warnings.catch_warnings(),
        _disk_errors(out),
    ):
        for known in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", known)
        return _train(config, out, resume, request)


def _train(
    config: RunConfig, out: Path, resume: Path | None, request: StopRequest
) -> dict[str, Any]:
    check_configuration(config)
    _check_folder(out)
    settings = config.trainer
    L.seed_everything(config.seed, workers=True, verbose=False)
    # The weights a run began from may be gone when it goes on; the checkpoint has its own.
    model = dataclasses.replace(config.model, initial_weights="") if resume else config.model
    module = S2DCModule(dataclasses.replace(config, model=model))
    resumed_step = 0
    changed: list[str] = []
    if resume:
        checkpoint = read_training_checkpoint(resume)
        check_fit(checkpoint, module, resume)
        resumed_step = int(checkpoint["global_step"])
        # A run that was killed after its last step still needs its encoder and summary.
        if resumed_step >= settings.max_steps and _finished_steps(out) >= resumed_step:
            raise ConfigurationError(
                f"{resume} has already done {resumed_step} steps.",
                "Give a larger --trainer.max_steps to go on.",
            )
        changed = changed_settings(config, checkpoint.get("settings", {}))
        del checkpoint
    stop = OrderlyStop(request, out / LAST, settings.max_minutes)
    validation = Validation(config, leaving=lambda: stop.reason == "signal")
    checkpoints = ModelCheckpoint(
        dirpath=out / LAST.parent,
        filename=LAST.stem,
        every_n_train_steps=settings.save_every,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    progress = Progress(lambda: validation.last)
    clock = WaitClock()
    trainer = _trainer(config, [validation, stop, progress, checkpoints], clock)
    if settings.compile:
        compile_encoders(module.student, module.teacher, device=trainer.strategy.root_device)

    data = S2DCDataModule(config.data, seed=config.seed, run_dir=out)
    if changed:
        data.notes.append(f"Going on with other settings: {', '.join(changed)}.")
    if is_first_process():
        # Before other processes are started, which would wait for this one in vain on an error.
        data.prepare_data()
        _begin_folder(config, out)
    trainer.loggers = [
        MetricsFile(out, resumed_step),
        TensorBoardLogger(
            str(out), name="", version="tensorboard", purge_step=resumed_step or None
        ),
    ]
    try:
        trainer.fit(
            module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True
        )
        if not stop.reason:
            # Only in a run that was killed right after its last step is there anything to measure.
            validation.measure_if_stale(trainer, module)
            trainer.save_checkpoint(out / LAST)
    except BaseException:
        # The other processes of this machine would wait for this one for ever.
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
        raise
    finally:
        request.deferred = False
    summary = _summary(trainer, module, data, validation, clock.waiting_share)
    if trainer.is_global_zero:
        encoder = out / "encoder.safetensors"
        module.student.encoder.save(encoder, encoder_metadata(config, data, summary))
        # Last, so that it says how far the encoder beside it was trained.
        _write_json(out / "summary.json", summary)
        # The tools offer it as the latest local run.
        remember_local_run(encoder)
    return summary | {"stopped": stop.reason}


def _trainer(config: RunConfig, callbacks: list[Callback], clock: WaitClock) -> L.Trainer:
    settings = config.trainer
    # On Windows PyTorch has no NCCL, and Lightning does not start an installed command again.
    alone = sys.platform == "win32"
    devices = 1 if alone and settings.devices == "auto" else settings.devices

    def make(strategy: str | Strategy) -> L.Trainer:
        return L.Trainer(
            strategy=strategy,
            # Where Lightning saves, under SLURM, when the job is about to be requeued.
            default_root_dir=Path(config.out) / LAST.parent,
            accelerator=_accelerator(settings.accelerator),
            devices=devices,
            num_nodes=settings.num_nodes,
            precision=_precision(config),  # type: ignore[arg-type]
            max_steps=settings.max_steps,
            limit_train_batches=settings.max_steps * settings.accumulate,
            limit_val_batches=0,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.gradient_clip or None,
            log_every_n_steps=settings.log_every,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,  # they write files at once: only when the scans are ready
            callbacks=callbacks,
            profiler=clock,
            plugins=[AtomicCheckpointIO()],
        )

    try:
        trainer = make("auto")
        if isinstance(trainer.strategy, DDPStrategy):
            if alone:
                raise ConfigurationError(
                    "On Windows a run takes one device of one machine.",
                    "Set --trainer.devices 1 and --trainer.num_nodes 1.",
                )
            # The other processes wait while the first one fills the cache of scans. Lightning has
            # one limit for all waiting, so a process that hangs is noticed no earlier either.
            trainer = make(DDPStrategy(timeout=_CACHE_TIMEOUT))
        return trainer
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"This machine cannot run with trainer.accelerator {settings.accelerator}, "
            f"devices {settings.devices} and precision {settings.precision}: {error}"
        ) from error


def _summary(
    trainer: L.Trainer,
    module: S2DCModule,
    data: S2DCDataModule,
    validation: Validation,
    waiting_share: float | None,
) -> dict[str, Any]:
    """Figures of the run; seconds are those of steps and validation, counted on over a resume."""
    steps, training = trainer.global_step, validation.training_seconds
    return {
        "steps": steps,
        "seconds": round(training + validation.measuring_seconds, 1),
        "steps_per_second": round(steps / training, 4) if training else None,
        # Steps after which the last figures were taken: fewer where a signal ended the run.
        "measured_after_steps": validation.last_step,
        # Since the run was last started.
        "waiting_for_data": None if waiting_share is None else round(waiting_share, 4),
        **{
            name: value if value is not None and math.isfinite(value) else None
            for name, value in validation.summary().items()
        },
        "peak_memory_mb": round(peak_memory_mb(module.device), 1),
        "volumes_used": len({*data.train_entries, *data.validation_entries}),
        "notes": data.notes,
        "volumes_skipped": [[str(path), reason] for path, reason in data.skipped],
    }
