"""Does an answer loop?  A run of four tokens that stands in it four times or more is a loop."""

from collections import Counter
from collections.abc import Sequence

from lightstride.generate import Decoder, Settings, generate

RUN = 4
"""Tokens of a run."""
TIMES = 4
"""As often it is a loop."""
ANSWER_TOKENS = 160
ROWS_AT_ONCE = 8


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether some run of tokens comes again and again."""
    return any(repeats(tokens, TIMES))


def repeats(tokens: Sequence[int], times: int = TIMES - 1) -> list[bool]:
    """Of each token, whether a run that ends with it stands there so many times by then."""
    runs: Counter[tuple[int, ...]] = Counter()
    found = [False] * min(RUN - 1, len(tokens))
    for end in range(RUN, len(tokens) + 1):
        run = tuple(tokens[end - RUN : end])
        runs[run] += 1
        found.append(runs[run] >= times)
    return found


def looping_share(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Of greedy answers: the share that loops, and the share that comes to an end by itself."""
    settings = Settings(max_new_tokens=ANSWER_TOKENS)
    answers = [
        answer
        for start in range(0, len(prompts), ROWS_AT_ONCE)
        for answer in generate(decoder, prompts[start : start + ROWS_AT_ONCE], settings)
    ]
    count = len(answers)
    return {
        "loops": sum(is_loop(answer.tokens) for answer in answers) / count,
        "ended": sum(answer.finish_reason == "stop" for answer in answers) / count,
        "answers": count,
    }
