"""Other people's implementations, asked the same questions as ours."""

from lockstep.oracle.transformers_model import Oracle, hf_model, logits_of_directory
from lockstep.oracle.transformers_training import (
    OptimizerSettings,
    StepRecord,
    Trained,
    threads,
    train,
)

__all__ = [
    "OptimizerSettings",
    "Oracle",
    "StepRecord",
    "Trained",
    "hf_model",
    "logits_of_directory",
    "threads",
    "train",
]
