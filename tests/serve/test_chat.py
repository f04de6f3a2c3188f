"""Chat through the `openai` package: every field, whole and streamed."""

import json
from collections.abc import Iterator

import openai
import pytest

from helpers.fake_session import wanted
from helpers.served import Served, served, toy_model
from lightstride.serve.api.toolcalls import CallReader

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(
        toy_model(), toy_model("tools", tools=True), toy_model("plain", modes=("ar",))
    ) as s:
        yield s


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **fields):
    values = {"model": "toy", "messages": HELLO, "seed": 1, "max_tokens": 12}
    return client.chat.completions.create(**{**values, **fields})


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = ask(client)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert len(choice.message.content) == 12
    assert choice.finish_reason == "length"
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (12, 12 + usage.prompt_tokens)
    assert usage.kv_entries == 6
    told = answer.metrics["speculative_decoding"]
    assert told == {
        "mean_acceptance_length": 2.0,
        "acceptance_histogram": [2, 2, 2],
        "num_spec_steps": 6,
    }


def test_streaming_brings_the_same_answer(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_steps_are_told_where_they_are_asked_for(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, extra_body={"stream_options": {"include_steps": True}}))
    steps = [c.step for c in chunks if hasattr(c, "step") and c.step]
    assert [step["tokens"] for step in steps] == [1, 2, 3, 1, 2, 3]
    assert [step["kv_entries"] for step in steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_differ_and_are_each_its_own(client: openai.OpenAI, stream: bool) -> None:
    alone = [ask(client, seed=seed).choices[0].message.content for seed in (1, 2, 3)]
    answer = ask(client, n=3, stream=stream)
    if stream:
        texts = ["", "", ""]
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = [choice.message.content for choice in answer.choices]
        assert answer.usage.completion_tokens == 36
    assert texts == alone
    assert len(set(texts)) == 3


def test_a_seed_repeats_and_none_does_not(client: openai.OpenAI) -> None:
    assert ask(client, seed=5).choices == ask(client, seed=5).choices
    texts = {ask(client, seed=None).choices[0].message.content for _ in range(3)}
    assert len(texts) > 1


def test_stop_strings_end_the_answer(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    stopped = ask(client, stop=["never said", text[4:6]]).choices[0]
    assert stopped.message.content == text[: text.find(text[4:6])]
    assert stopped.finish_reason == "stop"
    assert ask(client, stop=text[4:6]).choices[0].message.content == stopped.message.content


def test_logprobs(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=2).choices[0]
    told = choice.logprobs.content
    assert "".join(one.token for one in told) == choice.message.content
    for one in told:
        assert one.logprob < 0
        assert bytes(one.bytes).decode() == one.token
        assert len(one.top_logprobs) == 2
        assert one.top_logprobs[0].token == one.token
    chunks = list(ask(client, logprobs=True, top_logprobs=2, stream=True))
    streamed = [
        one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content
    ]
    assert streamed == told
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_biases_and_penalties_reach_the_choice(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    banned = ask(client, logit_bias={str(ord(text[0])): -100}).choices[0].message.content
    assert text[0] not in banned
    forced = ask(client, logit_bias={str(ord("!")): 100}).choices[0].message.content
    assert forced == "!" * 12
    varied = ask(client, logit_bias={"33": 100}, frequency_penalty=2, max_tokens=60)
    assert set(varied.choices[0].message.content) != {"!"}
    once = ask(client, logit_bias={"33": 9}, presence_penalty=2).choices[0].message.content
    assert once.count("!") < 12


def test_what_the_fake_is_asked_is_what_was_said(client: openai.OpenAI) -> None:
    prompt = [256, *b"user: hello", 257, *b"assistant: "]
    said = bytes(wanted(prompt, 1, place) for place in range(12)).decode()
    assert ask(client).choices[0].message.content == said


def test_json_object(client: openai.OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=200)
    choice = answer.choices[0]
    assert choice.finish_reason in ("stop", "length")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.startswith("{")


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 150}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_json_schema(client: openai.OpenAI, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    choice = ask(client, response_format=form, max_tokens=200, seed=seed).choices[0]
    pet = json.loads(choice.message.content)
    assert set(pet) == {"age", "kind"}
    assert isinstance(pet["age"], int)
    assert pet["kind"] in ("cat", "dog")
    assert choice.finish_reason == "stop"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Oslo", "Rome"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_forced_tool_is_called(client: openai.OpenAI, choice: object, stream: bool) -> None:
    answer = ask(
        client, model="tools", tools=[WEATHER], tool_choice=choice, max_tokens=200, stream=stream
    )
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        assert not any(chunk.delta.content for chunk in chunks)
        (call,) = [c for chunk in chunks for c in chunk.delta.tool_calls or []]
        assert chunks[-1].finish_reason == "tool_calls"
    else:
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].message.content is None
        assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["place"] in ("Oslo", "Rome")


def test_tools_that_need_not_be_called(client: openai.OpenAI) -> None:
    free = ask(client, model="tools", tools=[WEATHER])
    assert free.choices[0].message.tool_calls is None
    assert len(free.choices[0].message.content) == 12
    none = ask(client, model="tools", tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message.content == ask(client, model="tools").choices[0].message.content
    assert none.usage.prompt_tokens < free.usage.prompt_tokens


@pytest.mark.parametrize("name", ["[]", "{}", "null", "1", '"other"'])
def test_what_names_no_tool_is_text(name: str) -> None:
    reader = CallReader(["weather"])
    text = f'{{"name": {name}, "arguments": {{}}}}'
    assert (reader.feed(text), reader.finish()) == ("", (text, []))


def test_a_call_and_its_result_are_said_again(client: openai.OpenAI) -> None:
    first = ask(
        client, model="tools", tools=[WEATHER], tool_choice="required", max_tokens=200
    ).choices[0]
    call = first.message.tool_calls[0]
    messages = [
        *HELLO,
        first.message,
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    assert ask(client, model="tools", messages=messages, tools=[WEATHER]).choices[0].message.content


def test_parts_and_roles(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    whole = ask(client).choices[0].message.content
    assert ask(client, messages=[{"role": "user", "content": parts}]).choices[
        0
    ].message.content == (whole)
    system = ask(client, messages=[{"role": "developer", "content": "short"}, *HELLO])
    same = ask(client, messages=[{"role": "system", "content": "short"}, *HELLO])
    assert system.choices == same.choices


def test_our_own_fields(client: openai.OpenAI) -> None:
    extra = {"mode": "ar", "confidence": 0.5, "kv": 1.0, "top_k": 5, "min_p": 0.1}
    answer = ask(client, extra_body={**extra, "repetition_penalty": 1.1, "ignore_eos": True})
    assert answer.metrics["speculative_decoding"]["acceptance_histogram"] == [12]
    assert answer.usage.kv_entries == 12


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"extra_body": {"colour": 1}}, "colour", "unknown field: colour"),
        ({"extra_body": {"suffix": "x"}}, "suffix", "unknown field: suffix"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0", "role"),
        ({"messages": [{"role": "user"}]}, "messages.0.user.content", "missing field"),
        ({"messages": "hello"}, "messages", "list"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 17}, "n", "at most 16"),
        ({"n": True}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": "x" * 300}, "stop", "256 characters"),
        ({"stop": ""}, "stop.constrained-str", "at least 1 character"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "0 to 259"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "0 to 259"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"extra_body": {"mode": "verify"}}, "mode", "'trust'"),
        ({"extra_body": {"mode": "trust"}, "logprobs": True}, "logprobs", "trust"),
        ({"extra_body": {"mode": "trust", "exact": True}}, "exact", "this answer is in trust"),
        ({"extra_body": {"exact": "yes"}}, "exact", "boolean"),
        ({"model": "plain", "extra_body": {"mode": "trust"}}, "mode", "plain has the modes ar"),
        ({"model": "plain", "extra_body": {"confidence": 0.5}}, "confidence", "one token a step"),
        ({"extra_body": {"kv": 0.5}}, "kv", "shares of its KV entries: 1"),
        ({"tools": [WEATHER]}, "tools", "no place for tools"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"model": "tools", "tools": [WEATHER, WEATHER]}, "tools", "same name"),
        (
            {"messages": [{"role": "user", "content": "x" * 600}]},
            "messages",
            "a prompt may have at most 511",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nothing"}},
                }
            },
            "response_format",
            "schema cannot be used",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"description": "x" * 70_000}},
                }
            },
            "response_format",
            "at most 65,536 bytes",
        ),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, fields: dict, param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **fields)
    body = error.value.body
    assert said in body["message"]
    assert body["param"] == param
    assert body["type"] == "invalid_request_error"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, model="gpt-9")
    assert error.value.body["code"] == "model_not_found"
    assert "toy, tools, plain" in error.value.body["message"]
