"""Errors that transformers and its friends raise about a model, in one line for the user."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging

from lightstride.errors import LightstrideError, ModelError, NetworkError
from lightstride.models.opening.builtin import BUILT_IN, GRAFTS

NO_NETWORK = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports, whose complaints are errors of ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def errors_explained(source: str, part: str) -> Iterator[None]:
    """Inside this context errors about a part of a source become one line of ours."""
    try:
        with quiet():
            yield
    except LightstrideError:
        raise
    except SafetensorError as error:
        raise ModelError(f"the weights of {source} are truncated or damaged: {error}") from error
    except Exception as error:
        raise explain(source, part, error) from error


def explain(source: str, part: str, error: Exception) -> ModelError | NetworkError:
    """Our error for one of transformers' about a source."""
    causes = list(causes_of(error))
    if any(isinstance(cause, GatedRepoError | RepositoryNotFoundError) for cause in causes):
        return ModelError(f"{source} is no local folder, and no model on the hub that you may read")
    if any(isinstance(cause, NO_NETWORK) for cause in causes) and not Path(source).exists():
        names = ", ".join([*BUILT_IN, *GRAFTS])
        return NetworkError(
            f"{source} is no local folder, and the hub cannot be reached; without a network give"
            f" a folder, a .gguf file, or a built-in model ({names})"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
    return ModelError(f"the {part} of {source} cannot be read: {first_line}")


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
