"""What an experiment's file may say: `schema` holds its sections, `problems` says what is wrong with them."""

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
