"""Completions, responses, tokens and models through the `openai` package."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from helpers.served import Served, served, toy_model
from helpers.toys import EOS


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(toy_model(), toy_model("mute", has_chat=False)) as s:
        yield s


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, **fields):
    values = {"model": "toy", "prompt": "one two", "seed": 1, "max_tokens": 12}
    return client.completions.create(**{**values, **fields})


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.object == "text_completion"
    assert len(answer.choices[0].text) == 12
    assert answer.usage.prompt_tokens == 7
    assert len(complete(client, max_tokens=None).choices[0].text) > 12
    values = {"model": "toy", "prompt": "one two", "seed": 1}
    assert len(client.completions.create(**values).choices[0].text) == 16


def test_tokens_are_a_prompt_too(client: openai.OpenAI) -> None:
    assert complete(client, prompt=list(b"one two")).choices == complete(client).choices


def test_several_prompts_and_answers(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=["one", "two"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = complete(client, prompt="two", seed=2)
    assert answer.choices[3].text == alone.choices[0].text
    assert answer.usage.prompt_tokens == 6
    tokens = complete(client, prompt=[list(b"one"), list(b"two")], n=2)
    assert [c.text for c in tokens.choices] == [c.text for c in answer.choices]


def test_echo(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == "one two" + text
    chunks = list(complete(client, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two" + text
    tokens = complete(client, prompt=list(b"one two"), echo=True).choices[0].text
    assert tokens == "one two" + text


def test_streams(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(complete(client, n=2, stream=True, stream_options=options))
    whole = complete(client, n=2)
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks[:-1]].count("length") == 2


def test_logprobs(client: openai.OpenAI) -> None:
    choice = complete(client, logprobs=2).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == list(range(12))
    assert all(token in best for token, best in zip(told.tokens, told.top_logprobs, strict=True))
    assert [best[t] for t, best in zip(told.tokens, told.top_logprobs, strict=True)] == (
        told.token_logprobs
    )
    parts = [c.choices[0].logprobs for c in complete(client, logprobs=2, stream=True)]
    assert [offset for part in parts if part for offset in part.text_offset] == told.text_offset


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, None),
        ({"prompt": []}, None),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": "x" * 512}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, "n"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "top_logprobs"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, fields: dict, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, **fields)
    assert param is None or error.value.body["param"] == param


def test_a_response(client: openai.OpenAI) -> None:
    asked = {"model": "toy", "input": "hello", "max_output_tokens": 12}
    answer = client.responses.create(**asked, extra_body={"seed": 1})
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert len(answer.output_text) == 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12
    chat = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "hello"}], max_tokens=12, seed=1
    )
    assert chat.choices[0].message.content == answer.output_text
    again = client.responses.create(
        model="toy",
        input=[
            {"role": "user", "content": "hello"},
            *answer.output,
            {"role": "user", "content": "x"},
        ],
        instructions="short",
        extra_body={"seed": 1},
    )
    assert again.output_text


def test_a_response_streams(client: openai.OpenAI) -> None:
    asked = {"model": "toy", "input": "hello", "max_output_tokens": 12}
    whole = client.responses.create(**asked, extra_body={"seed": 1})
    with client.responses.stream(**asked, extra_body={"seed": 1}) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text


def test_a_response_of_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    form = {
        "type": "json_schema",
        "name": "one",
        "schema": {**schema, "additionalProperties": False},
    }
    answer = client.responses.create(model="toy", input="hello", text={"format": form})
    assert answer.status == "completed"
    assert answer.output_text.replace(" ", "").replace("\n", "") == '{"a":1}'


def test_models(client: openai.OpenAI, server: Served) -> None:
    assert [model.id for model in client.models.list()] == ["toy", "mute"]
    assert client.models.retrieve("mute").owned_by == "lightstride"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    facts = httpx.get(f"{server.url}/v1/models").json()["data"][0]["lightstride"]
    assert facts["default_mode"] == "lossless"


def test_a_model_without_a_template_completes_only(client: openai.OpenAI) -> None:
    assert complete(client, model="mute").choices[0].text
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="mute", messages=[{"role": "user", "content": "x"}])


def test_tokens_and_back(server: Served) -> None:
    def post(path: str, **body: object) -> httpx.Response:
        return httpx.post(server.url + path, json=body)

    told = post("/tokenize", model="toy", prompt="añb").json()
    assert told["tokens"] == list("añb".encode())
    assert told["count"] == 4
    assert post("/detokenize", model="toy", tokens=told["tokens"]).json() == {"prompt": "añb"}
    assert post("/detokenize", model="toy", tokens=[EOS]).json() == {"prompt": "<eos>"}
    chat = post("/tokenize", model="toy", messages=[{"role": "user", "content": "hi"}]).json()
    assert bytes(chat["tokens"][1:9]) == b"user: hi"
    assert post("/detokenize", model="toy", tokens=[260]).status_code == 400
    assert post("/tokenize", model="toy").status_code == 400
    assert post("/tokenize", prompt="which model?").status_code == 404
