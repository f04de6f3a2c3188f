"""`/v1/completions`: texts or tokens in, what follows them out."""

from typing import Annotated

from pydantic import Field

from lightstride.serve.schemas.base import Text, Writing

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Writing):
    """A request for what follows one or several prompts."""

    prompt: Text | Tokens | Annotated[list[Text], Field(min_length=1)] | list[Tokens]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry for every prompt: a text, or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(token, int) for token in self.prompt):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]
