"""What keeps a training: its telemetry, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from lockstep.artifacts import RunDir, Scalar, utc_now
from lockstep.artifacts.checkpoint_policy import CheckpointFile, CheckpointPolicy, Checkpoints
from lockstep.artifacts.checkpoint_state import CheckpointState, DataCursor, RandomState
from lockstep.artifacts.files import explained, sync
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.engine.bump import BUMP_FILE
from lockstep.engine.checkpoint import list_checkpoints, save_checkpoint
from lockstep.engine.trainer import TrainingSession
from lockstep.errors import LockstepError
from lockstep.training.create import weight_file_config
from lockstep.training.loop import Budget, Position
from lockstep.training.telemetry import SOURCE, Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a checkpoint belongs to."""

    run_id: str
    config: TrainConfig
    settings: TrainSettings
    tokenizer_sha256: str
    dataset_sha256: str


Progress = Callable[[MetricRow, Budget], None]  # called after each step


@dataclass
class RunObserver:
    """Telemetry after each step, and a checkpoint whenever one is asked for."""

    run: RunDir
    identity: Identity
    session: TrainingSession
    telemetry: Telemetry
    budget: Budget
    progress: Progress | None = None

    def stepped(self, row: MetricRow) -> None:
        """Tells what a step gave."""
        self.telemetry.stepped(row)
        if self.progress is not None:
            self.progress(row, self.budget)

    def save(self, position: Position, reason: str) -> None:
        """Writes a checkpoint and makes it current; the telemetry of its steps is synced first.

        Raises: EnvironmentLacks if the disk refuses; the checkpoint before is then still current.
        """
        if self.telemetry.rows:
            with explained(self.run.metrics):
                sync(self.run.metrics)
        save_checkpoint(
            self.run.checkpoints,
            self._state(position, reason),
            self.session.parameters(),
            self.session.moments(),
            run_id=self.identity.run_id,
            keep_last=self.identity.settings.keep_last,
        )
        self.telemetry.show()
        self.show_policy()

    def _state(self, position: Position, reason: str) -> CheckpointState:
        settings, config = self.identity.settings, self.identity.config
        schedule: Mapping[str, Scalar] = {
            "decay": settings.schedule,
            "peak_lr": settings.lr,
            "warmup_steps": settings.warmup_steps,
            "final_share": settings.final_lr_share,
            "steps_done": position.step,
        }
        return CheckpointState(
            created_at=utc_now(),
            reason=reason,
            step=position.step,
            tokens_seen=position.tokens_seen,
            template=config.template,
            config=weight_file_config(config),
            tokenizer_sha256=self.identity.tokenizer_sha256,
            dataset_sha256=self.identity.dataset_sha256,
            optimizer={"name": settings.optimizer, **asdict(config.adamw)},
            schedule=dict(schedule),
            settings=settings.fixed(),
            cursor=DataCursor(epoch=position.cursor.epoch, index=position.cursor.window),
            random=RandomState(generator="philox, keyed by seed and epoch", seed=settings.seed),
            files={},
        )

    def show_policy(self) -> None:
        """Replaces the list of checkpoints."""
        found = checkpoints_of(self.run, self.identity.settings)
        CheckpointPolicy(
            policy="step_interval" if found.save_every else "none",
            source=SOURCE,
            checkpointing=found.enabled,
            save_every=found.save_every,
            save_final=found.save_final,
            keep_last=self.identity.settings.keep_last,
            count=found.count,
            latest_step=found.latest_step,
            files=found.files,
            not_measured={"latest_step": "there is no checkpoint yet"} if not found.count else {},
        ).save(self.run.path)


def checkpoints_of(run: RunDir, settings: TrainSettings) -> Checkpoints:
    """The checkpoints that are in a run directory and can be read."""
    files: list[CheckpointFile] = []
    for path in list_checkpoints(run.checkpoints):
        try:
            state, manifest = CheckpointState.load(path), WeightsManifest.load(path)
        except LockstepError:
            continue  # a damaged one is named when a resume skips it
        where = path.relative_to(run.path)
        files.append(
            CheckpointFile(
                step=state.step,
                reason=state.reason,
                bump=str(where / BUMP_FILE),
                manifest=str(where / WeightsManifest.file),
                weights=len(manifest.entries),
                floats=sum(entry.size for entry in manifest.entries) // 4,
                bytes=manifest.weights_bytes,
                sha256=manifest.weights_sha256,
            )
        )
    return Checkpoints(
        enabled=True,
        save_every=settings.save_every,
        save_final=True,
        count=len(files),
        latest_step=files[-1].step if files else None,
        files=tuple(files),
    )
