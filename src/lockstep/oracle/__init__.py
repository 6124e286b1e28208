"""Other people's implementations, asked the same questions as ours."""

from lockstep.oracle.transformers_model import Oracle, hf_model
from lockstep.oracle.transformers_training import (
    OptimizerSettings,
    StepRecord,
    Trained,
    threads,
    train,
)

__all__ = ["OptimizerSettings", "Oracle", "StepRecord", "Trained", "hf_model", "threads", "train"]
