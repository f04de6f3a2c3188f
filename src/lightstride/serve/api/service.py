"""What the routes share: the models, the bounds, the defaults, whether the end is near."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightstride.serve.api.metrics import Meters
from lightstride.serve.faults import ApiError, shutting_down
from lightstride.serve.limits import Limits
from lightstride.serve.seam import Mode, Model


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request that leaves a field out gets."""

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    mode: Mode | None = None
    confidence: float | None = None
    exact: bool = False


@dataclass(kw_only=True)
class Service:
    """Served models and what holds for all of them."""

    models: Mapping[str, Model]
    limits: Limits = field(default_factory=Limits)
    defaults: Defaults = field(default_factory=Defaults)
    meters: Meters = field(default_factory=Meters)
    log_text: bool = False
    """Whether requests are logged with what they say."""
    draining: bool = False
    """Whether the server takes no more requests, because it is about to end."""

    def model(self, name: str | None) -> Model:
        """The model of this name, or the only one; ApiError 404 where there is none."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None or name not in self.models:
            known = ", ".join(self.models)
            given = "no model was named" if name is None else f"there is no model {name[:200]!r}"
            raise ApiError(404, f"{given}; served: {known}", param="model", code="model_not_found")
        return self.models[name]

    def open(self) -> None:
        """ApiError 503 where the server takes no more requests."""
        if self.draining:
            raise shutting_down()

    def close(self) -> None:
        """End all models' answers and threads."""
        for model in self.models.values():
            model.close()
