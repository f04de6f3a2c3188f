"""The smashed model: the base inside it, what training reads, what is on disk, and `generate`."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, TextStreamer

from helpers.agree import assert_close_logits, assert_no_ties, assert_same_weights
from helpers.smash_toys import BASES, PROMPTS, features, segmented, sharp, toy
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.errors import ConfigError, LightstrideError, ModelError
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.positions import slot_positions
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel
from lightstride.smash.model import body
from lightstride.smash.model.body import IGNORED, choose_vocabulary
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.slots import Segmented
from lightstride.smash.train.initialize import initialize_from_base

TOKENS = list(range(60, 80))


@pytest.mark.parametrize("family", TINY)
def test_called_with_tokens_it_is_the_base(family: str) -> None:
    model = toy(TINY[family]())
    ids = torch.randint(0, 256, (2, 9))
    output = model(ids, labels=ids)
    expected = model.base(ids, labels=ids)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    assert_close_logits(model(ids, logits_to_keep=2).logits, expected.logits[:, -2:])


@pytest.mark.parametrize("family", TINY)
def test_without_merging_segments_predict_what_the_base_does(family: str) -> None:
    model = toy(TINY[family]())
    batch = segmented(TOKENS[:1], [[token] for token in TOKENS[1:]])
    with torch.no_grad():
        logits = model.base_logits(model.predict(batch).first_ND)
    expected = model.base(torch.tensor([TOKENS])).logits[0, :-1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_predictions_are_those_of_one_segment_at_a_time() -> None:
    model = toy(micro_vocabulary=range(0, 256, 2))
    segments = [[7, 11], [65], [66, 150, 7, 7], [65, 65, 11], [7]]
    with torch.no_grad():
        found = model.predict(segmented([1, 2, 3], segments))
        place = 0
        for index, segment in enumerate(segments):
            taps = features(model, [1, 2, 3], segments[:index])
            torch.testing.assert_close(found.first_ND[index], taps[0, -1])
            for count in range(1, len(segment)):
                vector, _ = model.micro(
                    torch.cat([taps, model.embed(torch.tensor([segment[:count]]))], dim=1), None
                )
                torch.testing.assert_close(found.later_JD[place], vector[0, -1])
                assert int(found.later_tokens_J[place]) == segment[count]
                assert bool(found.later_is_last_J[place]) == (count + 1 == len(segment))
                assert int(found.later_segment_J[place]) == index
                assert int(found.later_place_J[place]) == count
                place += 1
    assert place == len(found.later_JD)
    assert found.first_tokens_N.tolist() == [segment[0] for segment in segments]
    assert found.first_is_last_N.tolist() == [len(segment) == 1 for segment in segments]


def test_segments_of_one_alone_need_no_micro_step() -> None:
    model = toy()
    found = model.predict(segmented([1, 2], [[7], [11]]))
    assert found.later_JD.shape == (0, 32)
    assert found.first_is_last_N.all()


def test_positions_jump_to_the_last_token_and_restart_with_documents() -> None:
    lengths = torch.tensor([[0, 1, 1, 3, 1, 2], [1, 1, 1, 1, 4, 0]])
    assert slot_positions(lengths).tolist() == [[-1, 0, 1, 4, 5, 7], [0, 1, 2, 3, 7, 7]]
    packed = torch.tensor([[1, 1, 3, 1, 2, 2, 1]])
    documents = torch.tensor([[4, 4, 4, 5, 5, 6, 6]])
    assert slot_positions(packed, documents_BS=documents).tolist() == [[0, 1, 4, 0, 2, 1, 2]]
    before = torch.tensor([7, 4])
    assert slot_positions(torch.tensor([[3], [1]]), before).tolist() == [[10], [5]]


@pytest.mark.parametrize("base", BASES)
def test_packed_and_padded_rows_are_rows_alone(base: str) -> None:
    model = toy(BASES[base]())
    rows = [([1, 2, 3], [[7, 11], [65]]), ([9], [[66, 150, 7], [11, 11], [65]])]
    alone = [model.predict(segmented(prompt, segments)) for prompt, segments in rows]
    expected_first = torch.cat([found.first_ND for found in alone])
    expected_later = torch.cat([found.later_JD for found in alone])
    one, two = (segmented(prompt, segments) for prompt, segments in rows)
    numbers = [torch.full_like(row.lengths_BS, i) for i, row in enumerate((one, two))]
    packed = Segmented(
        torch.cat([one.tokens_BL, two.tokens_BL], dim=1),
        torch.cat([one.lengths_BS, two.lengths_BS], dim=1),
        torch.cat([one.predicts_BS, two.predicts_BS], dim=1),
        torch.cat(numbers, dim=1),
    )
    padded = Segmented(*(stack(getattr(one, n), getattr(two, n)) for n in FIELDS))
    for batch in (packed, padded):
        found = model.predict(batch)
        torch.testing.assert_close(found.first_ND, expected_first, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.later_JD, expected_later, atol=1e-5, rtol=1e-5)


FIELDS = ("tokens_BL", "lengths_BS", "predicts_BS")


def stack(*rows: torch.Tensor) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
    return torch.cat(padded)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_position_jumps_do_not_cut_attention(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged slots reach back to the prompt; without our mask transformers would cut them off."""
    model = toy()
    model.base.set_attn_implementation(attention)
    segments = [[7, 11, 65], [66, 7], [11, 150, 7, 7], [65]]

    def reaches_the_prompt() -> bool:
        last = [features(model, [first, 2, 3], segments)[0, -1] for first in (1, 100)]
        return bool((last[0] - last[1]).abs().max() > 1e-5)

    assert reaches_the_prompt()
    monkeypatch.setattr(body, "attention_argument", lambda *_: None)
    assert not reaches_the_prompt()


@pytest.mark.parametrize("gist", [True, False])
def test_only_grafts_learn(gist: bool) -> None:
    model = toy(gist=gist)
    found = model.predict(segmented([1, 2, 3], [[7, 11], [65, 66, 7], [11]]))
    loss = model.base_logits(found.first_ND).sum() + model.micro_logits(found.later_JD).sum()
    loss = loss + model.stop_logits(found.first_ND).sum() + model.stop_logits(found.later_JD).sum()
    loss.backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    without = [
        name
        for name, parameter in model.named_parameters()
        if not name.startswith("base.") and (parameter.grad is None or not parameter.grad.any())
    ]
    # Of what the last block makes of a gist, only its entry is read by others.
    names = (
        "self_attn-q_proj",
        "self_attn-o_proj",
        "mlp-gate_proj",
        "mlp-up_proj",
        "mlp-down_proj",
    )
    idle = {f"1-{name}" for name in names} if gist else set()
    assert {name.split(".")[-1] for name in without} == idle


def test_the_micro_vocabulary_maps_there_and_back() -> None:
    model = toy(micro_vocabulary=[3, 7, 200])
    assert model.to_tokens(torch.tensor([0, 1, 2])).tolist() == [3, 7, 200]
    assert model.micro_targets(torch.tensor([200, 4, 3])).tolist() == [2, IGNORED, 0]
    vectors = torch.randn(5, 32)
    whole = model.base.get_output_embeddings()(vectors)
    torch.testing.assert_close(model.micro_logits(vectors), whole[:, [3, 7, 200]])
    counts = torch.tensor([5, 0, 9, 9, 1, 0])
    assert choose_vocabulary(counts, 3, always=[5]).tolist() == [2, 3, 5]
    assert choose_vocabulary(torch.zeros(6), 3, always=[]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("family", TINY)
def test_micro_layers_may_start_as_the_last_block(family: str) -> None:
    model = toy(TINY[family](), adapter_rank=0)
    initialize_from_base(model)
    last = body.adapter_for(model.base.config).blocks(model.base)[-1]
    weights = body.adapter_for(model.base.config).read(last, "ffn")
    for layer in model.micro.layers:
        assert torch.equal(layer.down.weight, weights["down"])
        assert torch.equal(layer.up.weight, weights["up"])


def test_a_micro_layer_that_starts_as_the_last_block_computes_the_same() -> None:
    model = toy(tiny_llama(), adapter_rank=0, num_layers=1)
    initialize_from_base(model)
    inputs = torch.randn(1, 5, 32)
    angles = model.micro.angles_2Sd[:, :5]
    found, _ = model.micro.layers[0](inputs, angles, None, 5)
    cosine, sine = model.base.model.rotary_emb(inputs, torch.arange(5)[None])
    mask = torch.ones(1, 1, 5, 5).bool().tril()
    expected = model.base.model.layers[-1](
        inputs, attention_mask=mask, position_embeddings=(cosine, sine)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.micro.norm(inputs), model.base.model.norm(inputs))


def test_a_fingerprint_knows_weights_and_not_their_type() -> None:
    model = tiny_llama()
    name = fingerprint(model)
    assert name == fingerprint(tiny_llama()) == fingerprint(tiny_llama().bfloat16())
    assert name != fingerprint(tiny_llama(seed=1))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert name != fingerprint(model)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a smashed checkpoint on it."""
    tokenizer = byte_tokenizer()
    save_checkpoint(sharp(BASES["llama"]()), tokenizer, tmp_path / "base")
    base = load_model(str(tmp_path / "base"))
    model = toy(base, micro_vocabulary=range(0, 256, 3))
    save_checkpoint(model, tokenizer, tmp_path / "smashed", record={"kind": "smashed"})
    return tmp_path / "base", tmp_path / "smashed"


def test_saved_and_opened_it_is_the_same(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    first = toy(load_model(str(base)), micro_vocabulary=range(0, 256, 3))
    opened = SmashModel.from_pretrained(smashed)
    assert_same_weights(opened, first)
    batch = segmented([1, 2, 3], [[7, 11], [65, 66, 7], [11]])
    one, two = first.predict(batch), opened.predict(batch)
    assert_close_logits(two.first_ND, one.first_ND)
    assert_close_logits(opened.micro_logits(two.later_JD), first.micro_logits(one.later_JD))
    settings = Settings(max_new_tokens=16, confidence=0.4)
    before = generate(SmashDecoder(first, byte_tokenizer()), PROMPTS, settings)
    after = generate(open_decoder(str(smashed)), PROMPTS, settings)
    assert [answer.steps for answer in before] == [answer.steps for answer in after]


def test_only_the_grafts_are_stored(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    names = set(load_file(smashed / "model.safetensors"))
    assert not any(name.startswith("base.") for name in names)
    assert {name.split(".")[0] for name in names} == {
        "embedder", "micro", "stop", "adapters", "micro_vocabulary_M",
    }  # fmt: skip
    config = json.loads((smashed / "config.json").read_text())
    assert config["base"] == "../base"
    assert config["base_fingerprint"] == fingerprint(load_model(str(base)))


def test_both_folders_can_be_moved_together(folders: tuple[Path, Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in folders:
        shutil.move(folder, elsewhere / folder.name)
    model = SmashModel.from_pretrained(elsewhere / "smashed")
    model.save_pretrained(elsewhere / "again")
    assert json.loads((elsewhere / "again" / "config.json").read_text())["base"] == "../base"


def test_auto_classes_open_it(folders: tuple[Path, Path]) -> None:
    _, smashed = folders
    assert isinstance(AutoConfig.from_pretrained(smashed), SmashConfig)
    model = AutoModelForCausalLM.from_pretrained(smashed)
    assert isinstance(model, SmashModel)
    ids = torch.tensor([PROMPTS[1]])
    assert model(ids).logits.shape == (1, 9, 260)


def damage(smashed: Path, kind: str) -> None:
    path = smashed / "model.safetensors"
    state = load_file(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "corrupt":
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    elif kind == "missing":
        path.unlink()
    elif kind == "not finite":
        state["stop.bias"][0] = torch.nan
        save_file(state, path)
    elif kind == "lacking":
        del state["stop.bias"]
        save_file(state, path)
    elif kind == "surplus":
        save_file({**state, "more": torch.zeros(2)}, path)
    elif kind == "size":
        save_file({**state, "stop.bias": torch.zeros(2)}, path)
    else:
        config = json.loads((smashed / "config.json").read_text())
        changes = {
            "no base": {"base": "../nothing"},
            "taps": {"taps": [1, 9]},
            "heads": {"embedder_heads": 5},
        }
        (smashed / "config.json").write_text(json.dumps({**config, **changes[kind]}))


KINDS = (
    "truncated", "corrupt", "missing", "not finite", "lacking", "surplus", "size", "no base",
    "taps", "heads",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoints_are_one_line(
    folders: tuple[Path, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, smashed = folders
    damage(smashed, kind)
    assert cli.main(["generate", str(smashed), "-p", "hello"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightstride: error: ")
    assert captured.err.count("\n") == 1


def test_another_base_is_refused(folders: tuple[Path, Path]) -> None:
    base, smashed = folders
    with pytest.raises(ModelError, match="belong to the base"):
        SmashModel.from_pretrained(smashed, base=BASES["uneven"]())
    shutil.rmtree(base)
    save_checkpoint(tiny_llama(seed=5, tied=False), byte_tokenizer(), base)
    with pytest.raises(ModelError, match="belong to the base"):
        open_decoder(str(smashed))


def test_options_that_would_be_ignored_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match="device_map"):
        AutoModelForCausalLM.from_pretrained(folders[1], device_map="auto")


@pytest.mark.parametrize(
    "flags",
    [
        ["-p", ""],
        ["-p", "x" * 600],
        ["-p", "x", "--confidence", "0"],
        ["-p", "x", "--confidence", "1.5"],
        ["-p", "x", "--mode", "fast"],
        ["-p", "x", "--max-new-tokens", "0"],
        ["-p", "x", "--raw", "--system", "y"],
    ],
)
def test_bad_flags_are_one_line(
    folders: tuple[Path, Path], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(folders[1]), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightstride: error: ")
    assert captured.err.count("\n") == 1


def test_the_command_streams_and_says_what_it_cost(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        "generate",
        str(folders[1]),
        "-p",
        "hello",
        "--max-new-tokens",
        "16",
        "--dtype",
        "float32",
    ]
    flags += ["--confidence", "0.3"]
    assert cli.main([*flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tokens"] == 16 == sum(map(len, document["steps"]))
    assert document["macro_steps"] == len(document["steps"])
    assert document["tokens_per_step"] == pytest.approx(16 / document["macro_steps"])
    assert document["kv_entries"] == document["macro_steps"] - 1
    assert document["kv_bytes"] == document["kv_entries"] * 2 * 2 * 2 * 8 * 4
    assert document["tokens_per_second"] > 0
    assert cli.main(flags) == 0
    captured = capsys.readouterr()
    assert captured.out == document["text"] + "\n"
    assert captured.err.startswith(f"16 tokens in {document['macro_steps']} macro steps")
    assert captured.err.count("\n") == 1
    assert cli.main([*flags, "--show-steps"]) == 0
    assert "\x1b[36m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main([*flags, "--show-steps"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_plain_model_answers_too(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["generate", str(folders[0]), "-p", "hello", "--raw", "--max-new-tokens", "5", "--json"]
    assert cli.main(flags) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tokens"], document["macro_steps"], document["prompt_tokens"]) == (5, 5, 5)


class Recorder(TextStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer())
        self.chunks: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("mode", ["trust", "verify", "lossless", "ar"])
def test_transformers_generate_answers_in_macro_steps(mode: str) -> None:
    model = toy()
    model.generation_config.mode = mode
    model.generation_config.confidence = 0.4
    prompt = PROMPTS[1]
    settings = Settings(max_new_tokens=12, mode=mode, confidence=0.4)
    decoder = SmashDecoder(model, byte_tokenizer())
    assert_no_ties(decoder, [prompt], settings)
    answer = generate(decoder, [prompt], settings)[0]
    streamer = Recorder()
    ids = torch.tensor([prompt])
    found = model.generate(ids, max_new_tokens=12, do_sample=False, streamer=streamer)
    assert found[0].tolist() == [*prompt, *answer.tokens]
    assert streamer.chunks == [prompt, *map(list, answer.steps)]
    assert streamer.ended


def test_transformers_generate_has_the_trees_size_from_its_config() -> None:
    model = toy()
    model.generation_config.mode = "lossless"
    model.generation_config.tree = 1
    model.generation_config.lookup = 0
    streamer = Recorder()
    model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=9, do_sample=False, streamer=streamer)
    assert [len(chunk) for chunk in streamer.chunks[1:]] == [1] * 9
    model.generation_config.tree = 0
    with pytest.raises(ConfigError, match="tree is 0"):
        model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=9, do_sample=False)


def test_transformers_generate_takes_padded_batches_and_end_tokens() -> None:
    model = toy()
    model.generation_config.mode = "lossless"
    model.generation_config.confidence = 0.2
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[258] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    plain = PlainDecoder(model.base, byte_tokenizer())
    assert_no_ties(plain, PROMPTS, Settings(max_new_tokens=9))
    free = generate(plain, PROMPTS, Settings(max_new_tokens=9))
    end = free[0].tokens[4]
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=[end, 250],
        pad_token_id=258,
    )  # fmt: skip
    for row, answer in zip(found[:, width:].tolist(), free, strict=True):
        length = answer.tokens.index(end) + 1 if end in answer.tokens else 9
        expected = [*answer.tokens[:length], *[258] * (9 - length)]
        assert row == expected[: len(row)]


def text_of(tokens: torch.Tensor) -> str:
    return byte_tokenizer().decode(tokens)


def test_transformers_processors_and_criteria_are_heard() -> None:
    model = toy()
    decoder = SmashDecoder(model, byte_tokenizer())
    ids = torch.tensor([PROMPTS[1]])
    for mode in ("trust", "verify", "lossless"):
        settings = Settings(max_new_tokens=14, mode=mode, confidence=0.1)
        assert_no_ties(decoder, PROMPTS[1:2], settings)
        model.generation_config.mode = mode
        model.generation_config.confidence = 0.1
        options = {"max_new_tokens": 14, "do_sample": False}
        base = GenerationConfig(no_repeat_ngram_size=2, pad_token_id=258, **options)
        expected = model.base.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=base
        )
        found = model.generate(ids, no_repeat_ngram_size=2, **options)
        answer = found[0].tolist()
        pairs = list(pairwise(answer))
        assert len(set(pairs)) == len(pairs)
        if mode == "lossless":
            assert answer == expected[0].tolist()  # no two tokens are near to equally likely
        whole = model.generate(ids, **options)[0, 9:]
        word = next(
            word for i in range(4, 13) if "\ufffd" not in (word := text_of(whole[i : i + 2]))
        )
        stopped = model.generate(ids, stop_strings=[word], tokenizer=byte_tokenizer(), **options)[
            0, 9:
        ]
        assert text_of(stopped).endswith(word)
        assert stopped.tolist() == whole.tolist()[: len(stopped)]


def test_transformers_generate_samples_by_its_seed() -> None:
    model = toy()
    ids = torch.tensor([PROMPTS[1]])
    answers = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        answers.append(model.generate(ids, max_new_tokens=12, do_sample=True, top_k=50).tolist())
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    "option",
    [{"return_dict_in_generate": True}, {"use_cache": False}, {"inputs_embeds": True}],
)
def test_transformers_options_that_would_be_ignored_are_refused(option: dict[str, object]) -> None:
    model = toy()
    ids = torch.tensor([PROMPTS[1]])
    if "inputs_embeds" in option:
        option = {"inputs_embeds": model.embed(ids)}
    with pytest.raises((ConfigError, LightstrideError)):
        model.generate(ids, max_new_tokens=3, do_sample=False, **option)
