"""The records that a training leaves: its report, the state of the run, and the plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lockstep.artifacts import RunDir, Scalar, utc_now
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.run_ledger import LedgerRow
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_report import (
    E2E_FILE,
    DataProvenance,
    Oracle,
    TokenizerLineage,
    TrainDims,
    TrainReport,
)
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.artifacts.training_parity import TrainingParity
from lockstep.artifacts.training_pipeline import (
    ModelDims,
    StageLoss,
    StageLossHistory,
    StageStatus,
    TimelineStage,
    TrainingPipeline,
)
from lockstep.artifacts.training_plan import (
    STAGES,
    PlanDataset,
    PlanRun,
    PlanStage,
    PlanTokenizer,
    TrainingPlan,
)
from lockstep.training.loop import Budget
from lockstep.training.observer import checkpoints_of
from lockstep.training.prepare import DATASET, Prepared
from lockstep.training.telemetry import (
    NO_TORCH,
    SOURCE,
    grad_norm_series,
    loss_rows,
    unmeasured,
)

STAGE = "pretrain"
_AGAINST_TORCH = (
    "first_torch_loss", "final_torch_loss", "max_loss_abs_diff", "mean_loss_abs_diff",
    "final_param_max_abs_diff", "final_param_mean_abs_diff", "final_optimizer_state_max_abs_diff",
)  # fmt: skip
_MAX_POINTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the records of one training are made of."""

    run: RunDir
    ledger: LedgerRow
    config: TrainConfig
    settings: TrainSettings
    prepared: Prepared
    budget: Budget
    requested: dict[str, Scalar]
    resumed_from: int
    began: float  # of the monotonic clock
    rows: Sequence[MetricRow]
    params_sha256: str

    @property
    def run_id(self) -> str:
        """The id of the training."""
        return self.ledger.run_id

    @property
    def status(self) -> StageStatus:
        """Whether the last step was reached."""
        return "completed" if self.rows[-1].step == self.budget.total_steps else "active"


def train_report(facts: Facts) -> TrainReport:
    """The report of a training, without a PyTorch beside it."""
    settings, config, rows = facts.settings, facts.config, facts.rows
    ours = [row for row in rows if row.step > facts.resumed_from]
    seconds = sum(row.wall_ms for row in ours) / 1e3
    before = rows[-len(ours) - 1].tokens_seen if 0 < len(ours) < len(rows) else 0
    tok_s = (rows[-1].tokens_seen - before) / seconds if ours else None
    untimed = {} if ours else {"train_tok_s": "nothing was left to train"}
    return TrainReport(
        run_id=facts.run_id,
        generated_at=utc_now(),
        family=config.template,
        epochs=settings.epochs,
        seq_len=settings.seq_len,
        total_tokens=rows[-1].tokens_seen,
        batch=settings.batch,
        grad_accum=settings.grad_accum,
        seed=settings.seed,
        threads=settings.threads,
        optimizer=settings.optimizer,
        optimizer_hparams=dict(asdict(config.adamw)),
        lr=settings.lr,
        schedule=_schedule(settings),
        max_grad_norm=settings.max_grad_norm,
        backend="c",
        train_mode=STAGE,
        source=SOURCE,
        steps=len(rows),
        micro_steps=len(rows) * settings.grad_accum,
        optimizer_steps=len(rows),
        tokens_per_update=settings.batch * settings.grad_accum * settings.seq_len,
        first_ck_loss=rows[0].loss,
        final_ck_loss=rows[-1].loss,
        first_torch_loss=None,
        final_torch_loss=None,
        max_loss_abs_diff=None,
        mean_loss_abs_diff=None,
        final_param_max_abs_diff=None,
        final_param_mean_abs_diff=None,
        final_optimizer_state_max_abs_diff=None,
        pass_parity=None,
        loss_curve=loss_rows(rows, settings),
        parity_steps=(),
        grad_norm_series=grad_norm_series(rows),
        train_dims=train_dims(facts),
        data_provenance=(provenance(facts),),
        tokenizer_lineage=lineage(facts),
        checkpoints=checkpoints_of(facts.run, settings),
        oracle=Oracle(available=False, name="", version="", reason=NO_TORCH),
        resumed_from_step=facts.resumed_from,
        params_sha256=facts.params_sha256,
        wall_s=time.perf_counter() - facts.began,
        train_tok_s=tok_s,
        not_measured={
            **dict.fromkeys(_AGAINST_TORCH, NO_TORCH),
            **unmeasured("loss_curve"),
            **untimed,
        },
    )


def _schedule(settings: TrainSettings) -> dict[str, Scalar]:
    return {
        "decay": settings.schedule,
        "warmup_steps": settings.warmup_steps,
        "final_share": settings.final_lr_share,
    }


def train_dims(facts: Facts) -> TrainDims:
    """The dimensions of the run; what was asked for was the same, or nothing."""
    asked = {k: v for k, v in facts.requested.items() if isinstance(v, int)}
    return TrainDims(
        source=TrainConfig.file, requested=asked, effective=facts.config.dims(), mismatches=()
    )


def provenance(facts: Facts) -> DataProvenance:
    """The rows that were trained on."""
    prepared = facts.prepared
    tokens = prepared.profile.token_count
    return DataProvenance(
        stage=STAGE,
        dataset_name=prepared.qc.dataset_name,
        source_path=str(prepared.path.relative_to(facts.run.path)),
        split="train",
        rows=prepared.n_rows,
        token_count=tokens if tokens is not None else prepared.windows.n_targets,
        byte_size=prepared.n_bytes,
        hash=prepared.sha256,
        packing=facts.settings.packing,
    )


def lineage(facts: Facts) -> TokenizerLineage:
    """The tokenizer that was trained with."""
    tokenizer = facts.prepared.tokenizer
    return TokenizerLineage(
        type=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        tokenizer_path=facts.run.tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        pre_tokenizer=tokenizer.pre_tokenizer,
        reused_run_tokenizer=facts.prepared.tokenizer_reused,
    )


def save_all(facts: Facts) -> TrainReport:
    """Writes the report into the work directory and the run, and the files about the run."""
    report = train_report(facts)
    report.save(facts.run.work(facts.run_id))
    report.save(facts.run.path, E2E_FILE)
    TrainingParity(steps=(), source=SOURCE, not_measured={"steps": NO_TORCH}).save(facts.run.path)
    training_plan(facts).save(facts.run.path)
    training_pipeline(facts).save(facts.run.path)
    return report


def training_pipeline(facts: Facts) -> TrainingPipeline:
    """What the run is doing, from which data, with which result."""
    config, settings, rows = facts.config, facts.settings, facts.rows
    entry = StageLoss(
        stage=STAGE,
        run_id=facts.run_id,
        ended_at=utc_now(),
        steps=len(rows),
        lr=settings.lr,
        seq_len=settings.seq_len,
        dataset_name=facts.prepared.qc.dataset_name,
        first_loss=rows[0].loss,
        final_loss=rows[-1].loss,
        drop_pct=_drop_pct(rows),
        points=tuple((r.step, r.loss) for r in rows[:: -(-len(rows) // _MAX_POINTS)]),
        stage_pass=facts.ledger.stage_pass,
        run_order=facts.ledger.run_order,
        parent_run_id=facts.ledger.parent_run_id,
    )
    return TrainingPipeline(
        generated_at=utc_now(),
        run_dir=str(facts.run.path),
        model=model_dims(config),
        active_stage=STAGE,
        curriculum_stage=STAGE,
        stage_timeline=_timeline(facts),
        backend="c",
        optimizer={"name": settings.optimizer, "lr": settings.lr, **asdict(config.adamw)},
        execution={"threads": settings.threads, "batch": settings.batch},
        train_dims=train_dims(facts),
        data_provenance=(provenance(facts),),
        tokenizer_lineage=lineage(facts),
        stage_loss_history=StageLossHistory(entries=(entry,)),
        training_plan_path=TrainingPlan.file,
    )


def model_dims(config: TrainConfig) -> ModelDims:
    """The model in one row."""
    return ModelDims(
        family=config.template,
        layers=config.num_layers,
        embed_dim=config.embed_dim,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        context_len=config.context_len,
        vocab_size=config.vocab_size,
        n_parameters=config.n_parameters,
    )


def _timeline(facts: Facts) -> tuple[TimelineStage, ...]:
    first = TimelineStage(
        stage=STAGE, order=0, status=facts.status, active=facts.status == "active"
    )
    later = STAGES[1:]
    return (
        first,
        *(TimelineStage(stage=s, order=i, status="planned", active=False)
          for i, s in enumerate(later, 1)),
    )  # fmt: skip


def _drop_pct(rows: Sequence[MetricRow]) -> float:
    return 100.0 * (rows[0].loss - rows[-1].loss) / rows[0].loss if rows[0].loss else 0.0


def training_plan(facts: Facts) -> TrainingPlan:
    """The plan with this training in it; earlier trainings stay, this one is put anew."""
    before = TrainingPlan.find(facts.run.path)
    rows, tokenizer = facts.rows, facts.prepared.tokenizer
    kept = tuple(r for r in before.stages[0].runs if r.run_id != facts.run_id) if before else ()
    run = PlanRun(
        run_id=facts.run_id,
        dataset=facts.prepared.qc.dataset_name,
        lr=facts.settings.lr,
        steps=len(rows),
        first_loss=rows[0].loss,
        final_loss=rows[-1].loss,
        drop_pct=_drop_pct(rows),
        ended_at=utc_now(),
    )
    train = provenance(facts)
    dataset = PlanDataset(
        name=train.dataset_name,
        path=f"{DATASET}/{facts.prepared.path.name}",
        rows=train.rows,
        kind="svg",
        split="train",
        hash=train.hash,
        in_tokenizer_corpus=True,
    )
    first = PlanStage(
        stage=STAGE, seq=1, status=facts.status, datasets=(dataset,), runs=(*kept, run)
    )
    others = (
        PlanStage(stage=s, seq=i, status="planned", datasets=(), runs=())
        for i, s in enumerate(STAGES[1:], 2)
    )
    return TrainingPlan(
        created_at=before.created_at if before else utc_now(),
        updated_at=utc_now(),
        run_dir=str(facts.run.path),
        active_stage=STAGE,
        stage_order=STAGES,
        tokenizer=PlanTokenizer(
            type=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            path=facts.run.tokenizer.name,
            sha256=tokenizer.sha256,
            corpora=(dataset.path,),
        ),
        stages=(first, *others),
    )
