"""Hypothesis strategies of `Damage`, one for each sort of file."""

from typing import Any

from hypothesis import strategies as st

from fuzz.binary import GGUF_KINDS, TENSOR_CHANGES
from fuzz.damage import Damage

Step = st.SearchStrategy[tuple[Any, ...]]

NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 255, 256, 257, 259, 260, 261, 511, 513, 10_000),
    *(65_537, 10**6, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, -(10**9)),
    *(0.0, 0.5, -0.5, 1.5, 1e-300, 1e30, 1e308, -1e308),
]
TEXTS: list[Any] = [
    *(
        "",
        "x",
        "0",
        "1",
        "nan",
        "inf",
        "../x",
        "..",
        ".",
        "/etc/passwd",
        "/dev/zero",
        "config.json",
    ),
    *("a\x00b", "a\nb", "\x1b[31m", "\ud83d\ude00", "\ud800", "x" * 5000, "[" * 3000),
    *("float64", "torch.float32", "int8", "auto", "quantized", "llama", "opt", "gemma3_text"),
    *("lightstride_llama", "lightstride_smash", "lightstride_headed", "gpt2", "eager", "relu"),
    *("linear", "dynamic", "yarn", "longrope", "llama3", "default", "full_attention"),
    *(
        "sliding_attention",
        "<eos>",
        "{{ 1/0 }}",
        "%s%n",
        "$\\bad$",
        "(((((a*)*)*)*)*)$",
        "smollm2-135m",
    ),
    *("BPE", "Unigram", "WordLevel", "ByteLevel", "Sequence", "Replace", "TemplateProcessing"),
]
HOLDERS: list[Any] = [
    *([], {}, [[]], [None], ["x"], [0], [1, 2], [-1], [1e308], [10**30], [True], ["x"] * 300),
    *({"a": {"b": 1}}, {"": None}, {"0": {}}, {"0": 1}, {"type": "x"}, {"rope_type": "yarn"}),
    *({"rope_type": "dynamic", "factor": 0}, {"rope_type": "linear", "factor": 1e30}),
]
JUNK: list[Any] = [None, True, False, *NUMBERS, *TEXTS, *HOLDERS]
RAW = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1" * 5000, b"0x10", b"01", b"1.0"),
    *(b"-0", b"-0.0", b"1e5", b"1E400", b'"\\ud800"', b'"\\u0000"', b"'x'", b"nil", b"", b"[,]"),
    *(b'{"a":1,"a":[]}', b"9007199254740993", b"true", b"undefined"),
]
BYTES = [
    *(b"", b"\x00", b"\xff\xfe", b"\xe1", b"\xef\xbb\xbf", b"{}", b"[]", b"null", b"nan", b"\n"),
    *(b"\r\n", b"\\ud800", b"[" * 100_000, b"\x80" * 64, b"0", b'""', b"\x1b[2J", b"\xf0\x9f\x98"),
    *(b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x80\x04\x95", b"version https://git-lfs.github.com"),
]
NAMES = ["", "x", "model_type", "vocab_size", "type", "0", "a\x00b", "text", "prompt", "\ud800"]
FLOATS = [
    *(b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 8, b"\x00" * 16, b"\xca\xf2\x49\x71"),
    *(b"\xff\xff\x7f\x7f", b"\xff\xff\x7f\xff", b"\x01\x00\x00\x00", b"\xff" * 4096),
]

draw = st.integers(0, 1 << 20)
share = st.integers(0, 9999).map(lambda each: each / 10_000)
junk = st.sampled_from(JUNK)


def step(name: str, *arguments: st.SearchStrategy[Any]) -> Step:
    return st.tuples(st.just(name), *arguments)


def json_steps(prefix: str = "", *more: st.SearchStrategy[Any]) -> list[Step]:
    """Steps on JSON: of a header, of a line, of the whole file."""

    def named(name: str, *arguments: st.SearchStrategy[Any]) -> Step:
        return step(prefix + name, *more, *arguments)

    depth = st.sampled_from([50, 101, 900, 5000, 100_000])
    kinds = ["text", "list", "object", "float", "int", "bool", "numbered", "empty", "twice"]
    value = named("put", draw, junk)
    return [
        *[value] * 5,
        named("delete", draw),
        named("delete", draw),
        named("swap", draw, draw),
        named("copy_to", draw, draw),
        named("add", draw, junk),
        named("rename", draw, st.sampled_from(NAMES)),
        *[named("retype", draw, st.sampled_from(kinds))] * 2,
        *[
            named(
                "scale",
                draw,
                st.sampled_from([-1, 0.5, 2, 1000, 1e6, 1]),
                st.sampled_from([0, 0, 1, -1, 0.5]),
            )
        ]
        * 3,
        named("raw", draw, st.sampled_from(RAW)),
        named("raw", draw, st.sampled_from(RAW)),
        named("double_key", draw, st.sampled_from([*RAW, b"0", b"[]"])),
        named("wrap"),
        named("deepen", depth),
        named("deepen_inside", draw, depth),
    ]


def damages(*steps: Step) -> st.SearchStrategy[Damage]:
    """One to three steps of these kinds, seldom with something else in the file's place."""
    several = st.lists(st.one_of(*steps), min_size=1, max_size=3)
    inside = several.map(lambda s: Damage(tuple(s)))
    outside = st.one_of(*place_steps).map(lambda s: Damage((s,)))
    return st.integers(0, 29).flatmap(lambda n: outside if n == 17 else inside)


byte_steps = [
    step("flip", share, st.integers(1, 255)),
    step("flip", share, st.integers(1, 255)),
    step("truncate", share),
    step("truncate_after", draw),
    step("insert", share, st.sampled_from(BYTES)),
    step("replace", st.sampled_from(BYTES)),
    step("repeat", st.sampled_from([2, 3])),
    step("recode", st.sampled_from(["utf-16", "utf-8-sig", "utf-16-le", "utf-32", "latin-1"])),
]
place_steps = [
    step("gone"),
    step("folder"),
    step("loop"),
    step("fifo"),
    step("device", st.sampled_from(["/dev/zero", "/dev/null", "/dev/full", "/dev/urandom"])),
    step("link_out"),
    step("sparse", st.sampled_from([0, 1, 1 << 20, 5 << 30])),
    *[step("swapped", draw)] * 3,
    step(
        "beside",
        st.sampled_from(
            ["pytorch_model.bin", "model.safetensors.index.json", "adapter_config.json", "a\nb",
             "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt",
             "tokenizer.model", "chat_template.json", "memory.json", "lightstride.json",
             "generation_config.json", "processor_config.json", "quantize_config.json"]
        ),
        st.sampled_from(BYTES),
    ),
]  # fmt: skip
line_steps = [
    *json_steps("line_", draw),
    step("line_flip", draw, share, st.integers(1, 255)),
    step("line_insert", draw, share, st.sampled_from(BYTES)),
    step("line_truncate", draw, share),
    step("lose_line", draw),
    step("swap_lines", draw, draw),
    step("double_line", draw, st.sampled_from([1, 2, 50])),
]
tensor_step = step("header_tensor", draw, st.sampled_from([*TENSOR_CHANGES]))

json_damage = damages(*json_steps(), *json_steps(), *byte_steps)
line_damage = damages(*line_steps, *byte_steps)
byte_damage = damages(*byte_steps)
safetensors_damage = damages(
    *[tensor_step] * 20,
    *[step("body", share, st.sampled_from(FLOATS))] * 10,
    *json_steps("header_"),
    *byte_steps,
    step("header_length", st.sampled_from([0, 1, 2**31, 2**63, 100, 2**64 - 1])),
    step("header_flip", share, st.integers(1, 255)),
)
GGUF_NUMBERS = [*range(34), 64, 256, 257, 1000, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**9]
GGUF_TEXTS = [b"", b"x", b"\xff", b"\x00", b"\n", b"general.architecture"]
GGUF_NAMES = [
    *(b"", b"x", b"a b", b"blk.7.x", b"qwen2", b"gemma3", b"gpt2", b"llama", b"\xff", b"y" * 3000),
    *(b"general.architecture", b"general.alignment", b"tokenizer.ggml.pre", b"bert", b"no"),
    *(b"llama.rope.scaling.type", b"rope_freqs.weight", b"tokenizer.chat_template", b"smaug-bpe"),
]
gguf_damage = damages(
    *[step("gguf_number", draw, st.sampled_from(GGUF_KINDS), st.sampled_from(GGUF_NUMBERS))] * 20,
    *[step("gguf_text", draw, st.sampled_from(GGUF_TEXTS))] * 4,
    *[step("gguf_rename", draw, st.sampled_from(GGUF_NAMES))] * 4,
    step("flip_in_head", share, st.integers(1, 255)),
    step("word", share, st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 10**9])),
    *byte_steps,
)  # fmt: skip
tokenizer_damage = damages(*json_steps(), *json_steps(), *json_steps(), *byte_steps)
TEMPLATES = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 1/0 }}",
    "{{ raise_exception('no') }}",
    "{{ undefined.x }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 2000000000 }}",
    "{{ 'x'/format(1,2) }}",
    "{{ messages",
    "{% endfor %}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ 10**10**10 }}",
    "{% set x = 'a' * 10000 %}{% for i in range(10000) %}{{ x }}{% endfor %}",
    "{{ messages.pop() }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'ab'|center(999999999) }}",
    "{{ (('a,' * 9999).split(',') * 9999)|join }}",
    "{{ range(99999)|list * 99999 }}",
    *(
        f"{{% set n = namespace(x={start}) %}}{{% for i in range(40) %}}{{% set n.x = {more} %}}"
        "{% endfor %}{{ n.x }}"
        for start, more in (
            ("'ab'", "n.x ~ n.x"),
            ("'ab'", "[n.x, n.x]|join"),
            ("'ab'", "n.x|replace('a', n.x)"),
            ("'ab'", "'%s%s' % (n.x, n.x)"),
            ("'ab'", "'{0}{0}'.format(n.x)"),
            ("[1]", "n.x + n.x"),
            ("9", "n.x * n.x"),
            ("{}", "dict(a=n.x, b=n.x)"),
        )
    ),
    "{{ lipsum(n=100000) }}",
    "{{ 'a'|indent(900000)|indent(900000, true) }}",
    "{{ messages|tojson(indent=900000) }}",
    "{{ ('a ' * 900000)|wordwrap(1) }}",
    "{{ ('a' * 900000)|urlize }}",
    "{{ 'a'.zfill(999999) * 16 }}",
    "{{ ('<' * 100000)|striptags }}",
    "{% include 'config.json' %}",
    "{% extends '/etc/passwd' %}",
    "{% import 'x' as y %}",
    "{{ self }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('role') }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages|attr('__class__') }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ strftime_now('%' * 5) }}",
    "{{ strftime_now('%999999999d') }}",
    "{{ strftime_now(1) }}",
    "{{ '\\ud800' }}",
    "\x00",
    "{# " + "x" * 100_000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 3000,
    "{{ " + "not " * 5000 + "1 }}",
    "",
]  # fmt: skip
templates = st.sampled_from(TEMPLATES).map(lambda text: text.encode("utf-8", "surrogatepass"))
template_damage = damages(
    *[step("replace", templates)] * 4,
    *[step("insert", share, templates)] * 4,
    *byte_steps,
)
