"""Three ways to decode a smashed model, each against something slower and simpler."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch

from helpers.agree import TIE, assert_no_ties, assert_same_greedy
from helpers.predictions import predict
from helpers.smash_toys import BASES, PROMPTS, sharp, slot_batch, slow_trust, toy
from helpers.toys import byte_tokenizer
from lightstride.errors import ConfigError
from lightstride.generate import Generation, Hooks, PlainDecoder, Settings, generate
from lightstride.generate.batch.masks import slot_positions
from lightstride.generate.sampling import distribution
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel

LENGTH = 14
MODES = ("lossless", "ar", "trust")


def decoder(model: SmashModel, **options: str) -> SmashDecoder:
    return SmashDecoder(model, byte_tokenizer(), **options)


def ask(**changes: object) -> Settings:
    return Settings(**{"max_new_tokens": LENGTH, "confidence": 0.4, **changes})


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("settings", [ask(mode="ar"), ask(mode="trust", confidence=1)])
def test_one_token_a_step_is_the_base(base: str, settings: Settings) -> None:
    model = toy(BASES[base]())
    plain = generate(PlainDecoder(model.base, byte_tokenizer()), PROMPTS, ask())
    smashed = generate(decoder(model), PROMPTS, settings)
    assert_same_answers(model, PROMPTS, smashed, plain)
    assert {len(step) for answer in smashed for step in answer.steps} == {1}


@pytest.mark.parametrize("mode", ["ar", "lossless"])
def test_sampling_one_token_a_step_draws_as_the_base_does(mode: str) -> None:
    model = toy()
    settings = ask(temperature=1.0, seed=3)
    plain = generate(PlainDecoder(model.base, byte_tokenizer()), PROMPTS, settings)
    confidence = 1.0 if mode == "lossless" else 0.4
    smashed = ask(temperature=1.0, seed=3, mode=mode, confidence=confidence)
    answers = generate(decoder(model), PROMPTS, smashed)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]


@pytest.mark.parametrize("base", BASES)
def test_lossless_is_the_base_for_200_prompts(base: str) -> None:
    model = toy(sharp(BASES[base]()))
    prompts = [torch.randint(0, 256, (1 + i % 7,)).tolist() for i in range(200)]
    settings = ask(mode="lossless", confidence=0.2, max_new_tokens=12)
    for start in range(0, 200, 50):
        batch = prompts[start : start + 50]
        answers = generate(decoder(model), batch, settings)
        plain = generate(PlainDecoder(model.base, byte_tokenizer()), batch, settings_of_base(12))
        assert_same_answers(model, batch, answers, plain)
        assert sum(answer.macro_steps for answer in answers) < 50 * 12
        assert all(len(answer.tokens) - 1 <= answer.kv_entries + 1 for answer in answers)


def assert_same_answers(
    model: SmashModel,
    prompts: Sequence[Sequence[int]],
    found: Sequence[Generation],
    expected: Sequence[Generation],
    tie: float = TIE,
) -> None:
    for prompt, one, other in zip(prompts, found, expected, strict=True):
        assert_same_greedy(model.base, prompt, one.tokens, other.tokens, tie)


def settings_of_base(length: int) -> Settings:
    return Settings(max_new_tokens=length)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("confidence", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("base", BASES)
def test_trust_is_its_slow_twin(base: str, confidence: float, calibrated: bool) -> None:
    model = toy(sharp(BASES[base]()), micro_vocabulary=range(0, 256, 5))
    if calibrated:
        model.config.calibration = [[0.5, -0.8, 0.1, 0.9], [0.5, -0.5, 0.2, 1], [1, -0.2, 0.1, 2]]
    answers = generate(decoder(model), PROMPTS, ask(mode="trust", confidence=confidence))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        segments = slow_trust(model, prompt, confidence, LENGTH)
        assert [list(step) for step in answer.steps] == segments
        assert answer.kv_entries == len(segments) - 1
    assert len({len(step) for answer in answers for step in answer.steps}) > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.9, "top_k": 4, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.4},
        {"repetition_penalty": 1.4},
    ],
)
def test_a_batch_answers_as_its_rows_do_alone(mode: str, changes: dict[str, object]) -> None:
    subject = decoder(toy(seed=1))
    settings = ask(mode=mode, **changes)
    if not settings.temperature:
        assert_no_ties(subject, PROMPTS, settings)
    together = generate(subject, PROMPTS, settings)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = generate(subject, [prompt], settings)[0]
        assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
        if mode != "lossless":  # its trees hang on the other rows
            assert (answer.steps, answer.kv_entries) == (alone.steps, alone.kv_entries)


@pytest.mark.parametrize("mode", MODES)
def test_caches_and_attention_implementations_agree(mode: str) -> None:
    model = toy()
    settings = ask(mode=mode, temperature=1.0)

    def parts(answer: Generation) -> object:
        """Its steps, or its tokens where steps hang on what was learned before."""
        return answer.tokens if mode == "lossless" else answer.steps

    expected = [parts(answer) for answer in generate(decoder(model), PROMPTS, settings)]
    for storage in ("dynamic", "static"):
        for attention in ("sdpa", "eager"):
            model.base.set_attn_implementation(attention)
            found = generate(decoder(model, storage=storage), PROMPTS, settings)
            assert [parts(answer) for answer in found] == expected


def chi_square_bound(degrees: int) -> float:
    """The value a chi-square statistic exceeds once in a thousand times (Wilson-Hilferty)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.09 * spread**0.5) ** 3


@pytest.mark.parametrize("prompt", [[7], [65] * 6])
def test_checked_sampling_follows_the_base(prompt: list[int]) -> None:
    model = toy(sharp(BASES["llama"]()), max_segment=3)
    with torch.no_grad():
        model.stop.bias.fill_(-50.0)
    settings = Settings(
        max_new_tokens=3, temperature=1.5, top_k=4, mode="lossless", confidence=0.05, tree=4, seed=1
    )
    num_answers = 2000
    answers = generate(decoder(model), [prompt] * num_answers, settings)
    seen = Counter(answer.tokens for answer in answers)
    assert sum(answer.macro_steps for answer in answers) < 2.9 * num_answers
    expected = expected_triples(model, prompt, settings)
    statistic = sum(
        (seen[triple] - num_answers * p) ** 2 / (num_answers * p) for triple, p in expected.items()
    )
    assert set(seen) <= set(expected)
    assert statistic < chi_square_bound(len(expected) - 1)


@torch.no_grad()
def expected_triples(
    model: SmashModel, prompt: list[int], settings: Settings
) -> dict[tuple[int, ...], float]:
    """Probability of every answer of three tokens under the base alone."""

    def following(tokens: tuple[int, ...]) -> dict[int, float]:
        logits = model.base(torch.tensor([[*prompt, *tokens]])).logits[:, -1]
        probabilities = distribution(logits, settings)[0]
        return {int(i): float(probabilities[i]) for i in probabilities.nonzero()[:, 0]}

    triples = {}
    for first, p in following(()).items():
        for second, q in following((first,)).items():
            for third, r in following((first, second)).items():
                triples[first, second, third] = p * q * r
    return triples


def test_decoding_places_slots_as_training_does() -> None:
    model = toy()
    recorded: list[torch.Tensor] = []
    model.base.register_forward_pre_hook(
        lambda _, args, kwargs: recorded.append(kwargs["position_ids"]), with_kwargs=True
    )
    for prompt, confidence in product(PROMPTS, (0.1, 0.4, 0.5)):
        recorded.clear()
        settings = ask(mode="trust", confidence=confidence)
        answer = generate(decoder(model), [prompt], settings)[0]
        lengths = [1] * len(prompt) + [len(step) for step in answer.steps[:-1]]
        trained = slot_positions(torch.tensor([lengths]))
        assert torch.cat(recorded, dim=1).tolist() == trained.tolist()
        last_tokens = [sum(lengths[: slot + 1]) - 1 for slot in range(len(lengths))]
        assert trained[0].tolist() == last_tokens


@pytest.mark.parametrize("base", BASES)
def test_cached_decoding_has_the_logits_of_teacher_forcing(base: str) -> None:
    model = toy(BASES[base]())
    recorded = []

    def record(_tokens: object, logits_V: torch.Tensor) -> torch.Tensor:
        recorded.append(logits_V)
        return logits_V

    for prompt in PROMPTS:
        recorded.clear()
        settings = ask(mode="trust")
        steps = [step.tokens[0] for step in decoder(model).steps([prompt], settings, Hooks(record))]
        with torch.no_grad():
            found = predict(model, slot_batch(prompt, steps))
            first = model.base_logits(found.first_ND)
            later = model.micro_logits(found.later_JD)
        expected = []
        for segment, logits in enumerate(first):
            expected += [logits, *later[found.later_segment_J == segment]]
        wanted = torch.stack(expected)
        assert (torch.stack(recorded) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_max_new_tokens_is_exact(mode: str) -> None:
    subject = decoder(toy())
    assert_no_ties(subject, PROMPTS[:2], ask(mode=mode, confidence=0.1))
    whole = generate(subject, PROMPTS[:2], ask(mode=mode, confidence=0.1))
    for length in range(1, 10):
        settings = ask(mode=mode, confidence=0.1, max_new_tokens=length)
        for answer, longer in zip(generate(subject, PROMPTS[:2], settings), whole, strict=True):
            assert len(answer.tokens) == length
            assert answer.tokens == longer.tokens[:length]
            assert answer.finish_reason == "length"
            assert answer.kv_entries <= length


@pytest.mark.parametrize("mode", MODES)
def test_nothing_comes_after_an_end_token(mode: str) -> None:
    model = toy()
    assert_no_ties(decoder(model), PROMPTS, ask(mode=mode, confidence=0.1))
    free = generate(decoder(model), PROMPTS, ask(mode=mode, confidence=0.1))
    for end in {token for answer in free for token in answer.tokens[:6]}:
        model.base.generation_config.eos_token_id = [end, 257]
        for answer, whole in zip(
            generate(decoder(model), PROMPTS, ask(mode=mode, confidence=0.1)), free, strict=True
        ):
            length = whole.tokens.index(end) + 1 if end in whole.tokens else LENGTH
            assert answer.tokens == whole.tokens[:length]
            assert answer.finish_reason == ("stop" if end in whole.tokens else "length")
            assert answer.kv_entries <= length


@pytest.mark.parametrize("mode", MODES)
def test_stop_strings_cut_at_every_offset_inside_a_step(mode: str) -> None:
    model = toy(max_segment=6)
    subject = decoder(model)
    assert_no_ties(subject, PROMPTS[:1], ask(mode=mode, confidence=0.05))
    free = generate(subject, PROMPTS[:1], ask(mode=mode, confidence=0.05))[0]
    offsets = set()
    for end in range(1, LENGTH + 1):
        word = subject.tokenizer.decode(free.tokens[max(0, end - 3) : end])
        if "\ufffd" in word or not word:
            continue
        settings = ask(mode=mode, confidence=0.05, stop=(word,))
        answer = generate(subject, PROMPTS[:1], settings)[0]
        assert answer.text == free.text[: free.text.index(word)]
        assert answer.tokens == free.tokens[: len(answer.tokens)]
        assert word in subject.tokenizer.decode(answer.tokens)
        assert word not in subject.tokenizer.decode(answer.tokens[:-1])
        assert answer.finish_reason == "stop"
        if mode == "trust":  # how many tokens a step of lossless tries hangs on more than the row
            offsets.add((len(answer.steps[-1]), len(free.steps[answer.macro_steps - 1])))
    assert mode != "trust" or any(kept < said for kept, said in offsets)


@pytest.mark.parametrize("mode", MODES)
def test_streamed_is_what_comes_back(mode: str) -> None:
    steps = []
    subject = decoder(toy())
    settings = ask(mode=mode, temperature=1.0)
    answers = generate(subject, PROMPTS, settings, on_step=steps.append)
    for row, answer in enumerate(answers):
        assert "".join(step.text[row] for step in steps) == answer.text
        assert sum((step.tokens[row] for step in steps), ()) == answer.tokens
        assert answer.text == subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_end_early_leave_the_others_alone(mode: str) -> None:
    model = toy()
    prompts = [[i, 2 * i, 3 * i][: 1 + i % 3] for i in range(1, 10)]
    settings = ask(mode=mode, temperature=2.0)
    alone = [generate(decoder(model), [prompt], settings)[0].tokens for prompt in prompts]
    model.base.generation_config.eos_token_id = [alone[0][1], alone[1][6], alone[4][3]]
    together = generate(decoder(model), prompts, settings)
    assert len({len(answer.tokens) for answer in together}) > 2
    for answer, whole in zip(together, alone, strict=True):
        assert answer.tokens == whole[: len(answer.tokens)]


def test_processors_see_the_tokens_of_the_current_step() -> None:
    histories = []

    def forbid(tokens: list[int], logits_V: torch.Tensor) -> torch.Tensor:
        histories.append(list(tokens))
        logits_V = logits_V.clone()
        logits_V[tokens] = -torch.inf
        return logits_V

    for mode in MODES:
        steps = decoder(toy()).steps(PROMPTS[:1], ask(mode=mode, confidence=0.1), Hooks(forbid))
        tokens = sum((step.tokens[0] for step in steps), ())
        assert len(set(tokens)) == len(tokens) == LENGTH
        assert list(tokens[:-1]) in histories


def test_a_segment_ends_where_no_micro_token_is_allowed() -> None:
    model = toy(micro_vocabulary=[0, 1, 2, 3])

    def forbid(_tokens: object, logits_V: torch.Tensor) -> torch.Tensor:
        logits_V = logits_V.clone()
        logits_V[:4] = -torch.inf
        return logits_V

    for mode in MODES:
        asked = ask(mode=mode, confidence=0.01, lookup=0)  # rows that have ended say nothing
        steps = decoder(model).steps(PROMPTS, asked, Hooks(forbid))
        assert all(len(tokens) <= 1 for step in steps for tokens in step.tokens)


def test_grafts_that_only_draft_have_the_checked_modes() -> None:
    merging = toy()
    model = toy(merging.base, merges=False)
    for ours, theirs in ((model.micro, merging.micro), (model.stop, merging.stop)):
        ours.load_state_dict(theirs.state_dict())
    settings = ask(mode="lossless", confidence=0.1, tree=8)
    found, expected = (generate(decoder(each), PROMPTS, settings) for each in (model, merging))
    assert [answer.steps for answer in found] == [answer.steps for answer in expected]
    with pytest.raises(ConfigError, match="mode is 'trust'; these grafts draft and do not merge"):
        generate(decoder(model), PROMPTS, ask(mode="trust"))


def test_a_smashed_answer_stores_fewer_entries() -> None:
    model = toy()
    with torch.no_grad():
        model.stop.weight.zero_()
        model.stop.bias.fill_(-50.0)
    subject = decoder(model, storage="dynamic")
    steps = list(subject.steps([[5] * 10], ask(mode="trust", max_new_tokens=400)))
    assert [len(step.tokens[0]) for step in steps] == [4] * 100
    assert steps[-1].kv_entries == (99,)
    assert steps[-1].allocated_bytes <= steps[-1].entry_bytes * 128


def test_the_context_is_never_left() -> None:
    model = toy()
    for mode in MODES:
        answer = generate(decoder(model), [[3] * 505], Settings(mode=mode, confidence=0.1))[0]
        assert (len(answer.tokens), answer.finish_reason) == (7, "length")
    with pytest.raises(ConfigError, match="context is 512"):
        generate(decoder(model), [[3] * 512], Settings())


@pytest.mark.slow
def test_lossless_is_the_base_on_the_real_model() -> None:
    base = load_model("smollm2-135m")
    tokenizer = load_tokenizer("smollm2-135m")
    model = SmashModel.graft(base)
    with torch.no_grad():
        model.stop.bias.fill_(-50.0)
    prompts = [
        tokenizer.encode(text) for text in ("The lighthouse", "2, 4, 6, 8,", "def add(a, b):")
    ]
    settings = Settings(max_new_tokens=24, mode="lossless", confidence=0.3)
    smashed = generate(SmashDecoder(model, tokenizer), prompts, settings)
    plain = generate(PlainDecoder(base, tokenizer), prompts, Settings(max_new_tokens=24))
    assert_same_answers(model, prompts, smashed, plain, tie=1e-2)
