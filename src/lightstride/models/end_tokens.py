"""Which tokens end an answer."""


def end_tokens(*sources: object) -> tuple[int, ...]:
    """The `eos_token_id` of configs, generation configs and tokenizers, in order, each once.

    A source may name one, several or none.
    """
    found: dict[int, None] = {}
    for source in sources:
        named = getattr(source, "eos_token_id", None)
        for token in named if isinstance(named, list | tuple) else [named]:
            if isinstance(token, int):
                found[token] = None
    return tuple(found)
