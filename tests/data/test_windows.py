"""Documents and windows: read from anything, deterministic, disjoint by document."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from helpers.toys import byte_tokenizer
from lightstride.data.documents import document_id, split_text
from lightstride.data.pydoc import library_documents, topic_documents
from lightstride.data.windows import Windows, check_disjoint, pack, read_documents, whole
from lightstride.errors import DataError, NetworkError

TEXTS = [f"Document {number} says {'word ' * 20}{number}." for number in range(40)]
WIKITEXT = " \n = One = \n \n First . \n = = Part = = \n More . \n = Two = \n \n Second . \n"


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS))
    return str(path)


def test_reads_every_kind_of_file(tmp_path: Path, jsonl: str) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(Path(jsonl).read_bytes()))
    (tmp_path / "b.json").write_text(json.dumps([{"content": text} for text in TEXTS]))
    (tmp_path / "c.json").write_text(json.dumps({"data": TEXTS, "version": 1}))
    table = pyarrow.table({"n": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    for name in ("texts.jsonl", "a.jsonl.gz", "b.json", "c.json", "d.parquet"):
        assert read_documents(str(tmp_path / name)) == TEXTS, name
    (tmp_path / "e.txt").write_text("Another text.")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f.md.gz").write_bytes(gzip.compress(b"# And another"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert read_documents(str(tmp_path)) == [*TEXTS, "Another text.", "# And another"]


def test_articles_of_wikitext_are_documents_that_together_are_the_text() -> None:
    first, second = split_text(WIKITEXT)
    assert first + second == WIKITEXT
    assert second.startswith(" = Two = ")


def test_a_plain_text_is_cut_at_blank_lines() -> None:
    text = "\n\n".join(f"Paragraph {number}. {'word ' * 300}" for number in range(40))
    pieces = split_text(text)
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert all(8000 <= len(piece) < 20000 for piece in pieces)
    assert split_text("x" * 10**6) == ["x" * 10**6]


def test_a_document_is_its_words() -> None:
    assert document_id("a  b\n c ") == document_id("a b c") != document_id("a bc")


def test_repeated_documents_count_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ["a b", "a  b", " ", "c"]))
    assert read_documents(str(path)) == ["a b", "c"]
    assert read_documents(str(path), skip=frozenset({document_id("c")})) == ["a b"]


def test_pydoc_is_built_in_and_repeats_no_paragraph() -> None:
    topics = topic_documents()
    assert len(topics) > 50
    assert sum(map(len, topics)) > 250_000
    paragraphs = [
        p for text in topics for p in set(text.split("\n\n")) if len(" ".join(p.split())) >= 60
    ]
    assert len(paragraphs) == len(set(paragraphs))
    assert len(read_documents("pydoc", enough_characters=10_000)) < len(topics)
    assert len(next(library_documents())) >= 1000


@pytest.mark.parametrize("add_bos", [False, True])
def test_packs_whole_documents_as_the_tokenizer_wants(jsonl: str, add_bos: bool) -> None:
    tokenizer = byte_tokenizer(add_bos=add_bos)
    packed = pack(jsonl, tokenizer, num_tokens=2000, window=96)
    assert packed.tokens_NL.shape == (20, 96)
    assert packed.tokens_NL.dtype == torch.int64
    stream = packed.tokens_NL.flatten().tolist()
    mark = tokenizer.bos_token_id if add_bos else tokenizer.eos_token_id
    assert (stream[0] == mark) == add_bos
    parts: list[list[int]] = [[]]
    for token in stream:
        if token == mark:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [tokenizer.decode(part) for part in parts if part]
    ids = {document_id(text) for text in texts[:-1]}
    assert ids < packed.documents
    assert len(packed.documents) == len(texts)
    assert any(text.startswith(texts[-1]) for text in TEXTS)


def test_the_seed_decides_and_nothing_else(jsonl: str) -> None:
    script = (
        "import sys; from lightstride.data.windows import pack;"
        "from helpers.toys import byte_tokenizer;"
        "print(pack(sys.argv[1], byte_tokenizer(), num_tokens=900, window=90, seed=3).sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, jsonl],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    here = pack(jsonl, byte_tokenizer(), num_tokens=900, window=90, seed=3)
    assert done.stdout.strip() == here.sha256, done.stderr
    assert pack(jsonl, byte_tokenizer(), num_tokens=900, window=90, seed=4).sha256 != here.sha256


def test_one_long_document_does_not_fill_everything(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    long = "long " * 40_000
    path.write_text("\n".join(json.dumps({"text": text}) for text in [long, *TEXTS]))
    for seed in range(5):
        packed = pack(str(path), byte_tokenizer(), num_tokens=4000, window=100, seed=seed)
        assert len(packed.documents) > 20
    enough = pack(str(path), byte_tokenizer(), num_tokens=100_000, window=100)
    assert enough.num_tokens == 100_000


def test_too_little_text_says_how_much_there_is(jsonl: str) -> None:
    with pytest.raises(DataError, match=r"texts.jsonl has [\d,]+ tokens; 1,000,000 are needed"):
        pack(jsonl, byte_tokenizer(), num_tokens=1_000_000, window=1000)
    with pytest.raises(DataError, match=r"has [\d,]+ tokens; 9,999 are needed"):
        whole(jsonl, byte_tokenizer(), window=9999)
    skip = frozenset(map(document_id, TEXTS))
    with pytest.raises(DataError, match="has 0 tokens left; 10 are needed"):
        pack(jsonl, byte_tokenizer(), num_tokens=10, window=10, skip=skip)


def test_roles_are_disjoint_by_document(jsonl: str) -> None:
    tokenizer = byte_tokenizer()
    calibration = pack(jsonl, tokenizer, num_tokens=900, window=90)
    search = pack(jsonl, tokenizer, num_tokens=900, window=90, skip=calibration.documents)
    used = calibration.documents | search.documents
    held_out = whole(jsonl, tokenizer, window=90, skip=used, num_tokens=900)
    check_disjoint(calibration=calibration, search=search, held_out=held_out)
    given = pack("self", tokenizer, num_tokens=900, window=90, skip=used, documents=TEXTS)
    check_disjoint(calibration=calibration, search=given)
    again = pack(jsonl, tokenizer, num_tokens=900, window=90, skip=search.documents)
    with pytest.raises(DataError, match=r"calibration \(.*\) and search \(.*\) share \d documents"):
        check_disjoint(calibration=calibration, search=again)


def test_whole_text_is_tokenized_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "wiki.raw").write_text(WIKITEXT)
    tokenizer = byte_tokenizer(add_bos=True)
    windows = whole(str(tmp_path / "wiki.raw"), tokenizer, window=16)
    assert tokenizer.decode(windows.tokens_NL.flatten()) == WIKITEXT[: len(WIKITEXT) // 16 * 16]
    assert len(windows.documents) == 2
    third = whole(str(tmp_path / "wiki.raw"), tokenizer, window=16, every=3)
    assert torch.equal(third.tokens_NL, windows.tokens_NL[::3])


def test_strides_score_every_token_once(jsonl: str) -> None:
    windows = whole(jsonl, byte_tokenizer(), window=64, stride=24)
    assert torch.equal(windows.tokens_NL[0, 24:], windows.tokens_NL[1, :40])
    assert windows.context_N.tolist() == [0] + [40] * (len(windows.tokens_NL) - 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "there is no text source '.*none.txt': it must be pydoc"),
        ("x.pdf", b"%PDF", r"x.pdf is not a file or folder of .txt, .md, .jsonl"),
        ("x.txt", b"\xff\xfe", "x.txt is not UTF-8 text: invalid start byte at byte 0"),
        ("x.txt", b"  \n", "there is no text in"),
        ("x.txt.gz", b"not gzip", "cannot read .*x.txt.gz: Not a gzipped file"),
        ("x.txt.gz", gzip.compress(b"text" * 99)[:20], "cannot read .*x.txt.gz: Compressed file"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', "x.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"txt": "a", "id": 1}', "none of the text fields text, .* it has txt, id"),
        ("x.jsonl", b'{"text": null}', "x.jsonl line 1 has no text: 'None'"),
        ("x.jsonl", b"[1]", "x.jsonl line 1 is neither a text nor a record"),
        ("x.json", b"{", "x.json is not JSON"),
        ("x.parquet", b"PAR1", "cannot read .*x.parquet"),
    ],
)
def test_says_what_is_wrong_with_a_source(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_documents(str(tmp_path / name))


def test_an_empty_folder_and_self_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file or folder of"):
        read_documents(str(tmp_path))
    with pytest.raises(DataError, match="self is sampled from a model"):
        read_documents("self")


def test_a_hub_id_without_a_network_names_what_there_is() -> None:
    with pytest.raises(NetworkError, match=r"data set a/b:c; without a network use pydoc"):
        read_documents("a/b:c")


def test_the_hash_tells_tokens_apart() -> None:
    def windows(token: int) -> Windows:
        zeros = torch.zeros(1, dtype=torch.int64)
        return Windows(torch.tensor([[1, token]]), frozenset(), "x", zeros)

    assert windows(1).sha256 == windows(1).sha256 != windows(2).sha256
