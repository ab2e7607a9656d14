"""What an experiment's file may say: `schema` holds its sections, `load` reads and checks it."""

from experiments.config.schema import (
    BehaviorConfig,
    ColdConfig,
    DataConfig,
    ExperimentConfig,
    GraphConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PoolingConfig,
    RetrievalConfig,
    RunConfig,
    SliceConfig,
    TrainingConfig,
)

__all__ = [
    "BehaviorConfig",
    "ColdConfig",
    "DataConfig",
    "ExperimentConfig",
    "GraphConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PoolingConfig",
    "RetrievalConfig",
    "RunConfig",
    "SliceConfig",
    "TrainingConfig",
]
