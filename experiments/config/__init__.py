"""The content of an experiment's file: `schema` holds its sections, `problems` finds what is wrong with them."""

from experiments.config.schema import (
    DataConfig,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SliceConfig,
    TrainingConfig,
)

__all__ = [
    "DataConfig",
    "ExperimentConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SliceConfig",
    "TrainingConfig",
]
