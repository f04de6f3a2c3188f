"""One frozen dataclass a command: its flags, their help, their defaults and their checks."""

from lightstride.config.base import Command, ModelCommand
from lightstride.config.bench import BenchConfig
from lightstride.config.cache import CacheConfig
from lightstride.config.doctor import DoctorConfig
from lightstride.config.evaluate import EvaluateConfig
from lightstride.config.export import ExportConfig
from lightstride.config.generate import GenerateConfig
from lightstride.config.prune import PruneConfig
from lightstride.config.recover import RecoverConfig
from lightstride.config.report import ReportConfig
from lightstride.config.serve import ServeConfig
from lightstride.config.smash import SmashRunConfig

__all__ = [
    "BenchConfig",
    "CacheConfig",
    "Command",
    "DoctorConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GenerateConfig",
    "ModelCommand",
    "PruneConfig",
    "RecoverConfig",
    "ReportConfig",
    "ServeConfig",
    "SmashRunConfig",
]
