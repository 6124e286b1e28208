"""Other people's implementations, asked the same questions as ours."""

from torch import get_num_threads

from lockstep.oracle.transformers_model import Oracle, hf_model
from lockstep.oracle.transformers_training import OptimizerSettings, StepRecord, Trained, train

__all__ = ["OptimizerSettings", "Oracle", "StepRecord", "Trained", "get_num_threads", "hf_model", "train"]
