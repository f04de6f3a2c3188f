"""Chat templates: the same text as transformers', and no harm done by those that go too far."""

import time

import pytest

from helpers.toys import byte_tokenizer
from lightstride.errors import ModelError
from lightstride.models import chat_template, template_sandbox
from lightstride.models.chat_template import render_chat

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hé <b>?\n"},
    {"role": "assistant", "content": "  Yes. "},
    {"role": "user", "content": "Why?"},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "blocks": "{%- for m in messages %}\n  {%- if loop.first %}{{ bos_token }}{% endif %}\n"
    "  {%- set role = m.role ~ ':' %}\n{{ role + ' ' + m['content'] }}\n{%- endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "macro": "{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages[1].content) }}",
    "split": "{{ messages[1].content.split('<')[-1] }}{{ '%s-%02d' | format('a', 3) }}",
    "pairs": "{% for name, value in messages[0].items() %}{{ name ~ '=' ~ value ~ loop.index }}"
    "{% endfor %}{% set (a, b) = ('x', 1) %}{{ a }}{{ [a, b, none] }}{{ {'k': (b,)} }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n * 2 }}{{ 'ab' * 3 }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("asks", [True, False])
def test_the_text_is_transformers_own(name: str, asks: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    theirs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=asks, tokenize=False)
    assert render_chat(tokenizer, MESSAGES, add_generation_prompt=asks) == theirs


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 2000000000 }}", "too long"),
        ("{{ 10 ** 10 ** 10 }}", "too large"),
        ("{{ '%999999999d' % 1 }}", "too much space"),
        ("{{ '{:>999999999}'.format(1) }}", "too much space"),
        ("{{ 'a'.ljust(999999999) }}", "too large"),
        ("{{ 'ab' | center(999999999) }}", "too large"),
        ("{% set x = 'a' * 9999 %}{{ (x * 99).replace('a', x) }}", "replaced or joined"),
        ("{% for i in range(10**9) %}x{% endfor %}", "[Rr]ange too big|too large"),
        ("{% set x = 'a' * 99999 %}{% for i in range(9999) %}{{ x }}{% endfor %}", "longer than"),
        ("{{ ('%(a)s' * 500000) % {'a': 'a' * 4000000} }}", "replaced or joined"),
        ("{{ ('{0[a]}' * 500000).format({'a': 'a' * 4000000}) }}", "replaced or joined"),
        ("{{ messages | tojson(indent=900000) }}", "indented"),
        ("{{ messages | tojson(indent='a' * 900000) }}", "indented"),
        ("{{ ().__class__.__bases__ }}", "unsafe"),
        ("{{ lipsum.__globals__['os'].popen('id') }}", "unsafe"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages", "unexpected"),
        ("{{ nothing.more }}", "undefined"),
    ],
)
def test_a_template_that_goes_too_far_is_one_line(template: str, message: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=message) as error:
        render_chat(tokenizer, MESSAGES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("start", "grow", "use"),
    [
        ("'ab'", "[n.x, n.x] | join", "n.x"),
        ("'ab'", "n.x ~ n.x", "n.x | length"),
        ("'ab'", "n.x + n.x", "n.x | length"),
        ("'ab'", "'%s%s' % (n.x, n.x)", "n.x | length"),
        ("'ab'", "'{}{}'.format(n.x, n.x)", "n.x | length"),
        ("'ab'", "twice(n.x)", "n.x | length"),
        ("'ab'", "[n.x, n.x] | string", "n.x | length"),
        ("'ab'", "{'a': n.x, 'b': n.x} | tojson", "n.x | length"),
        ("'ab'", "n.x | replace('a', 'aa')", "n.x | length"),
        ("[1]", "[n.x, n.x]", "n.x | string"),
        ("[1]", "{'a': n.x, 'b': n.x}", "n.x | tojson"),
        ("[1]", "dict(a=n.x, b=n.x)", "n.x == n.y"),
    ],
)
def test_a_value_that_doubles_is_stopped(
    start: str, grow: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_CHARACTERS", 1 << 14)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
        f"{{% set n = namespace(x={start}) %}}"
        f"{{% for i in range(64) %}}{{% set n.x = {grow} %}}{{% endfor %}}{{{{ {use} }}}}"
    )
    with pytest.raises(ModelError, match=r"too long|holds more|is longer|replaced or joined"):
        render_chat(tokenizer, MESSAGES)


def test_a_long_conversation_is_no_growth() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ (messages | selectattr('role', 'equalto', 'system') | list | first)['content'] }}"
        "{% for m in messages | rejectattr('role', 'equalto', 'system') %}"
        "{{ m.get('content', '').strip() ~ '\n' }}{% endfor %}"
    )
    long = [{"role": "user", "content": "x" * 1_000_000}] * 3
    assert len(render_chat(tokenizer, [*MESSAGES[:1], *long])) == 3 * 1_000_001 + len("Be brief.")


def test_half_a_character_is_no_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = r"{{ '\ud800' }}"
    with pytest.raises(ModelError, match="surrogates"):
        render_chat(tokenizer, MESSAGES)


def test_a_template_that_loops_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    tokenizer = byte_tokenizer()
    loop = "{% for i in range(99999) %}"
    tokenizer.chat_template = f"{loop}{loop}{'{% endfor %}' * 2}"
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"more than 0\.2 s"):
        render_chat(tokenizer, MESSAGES)
    assert time.monotonic() - start < 5
