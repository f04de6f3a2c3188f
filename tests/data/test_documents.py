"""Documents of every source, once each, or a line that says what is wrong."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from helpers.texts import TEXTS, WIKITEXT
from lightstride.data.documents import document_id, split_text
from lightstride.data.windows import read_documents
from lightstride.errors import DataError, NetworkError

CUT_GZIP = gzip.compress(b"text" * 99, mtime=0)[:20]


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
    (tmp_path / "sub" / "f.md.gz").write_bytes(gzip.compress(b"# And another", mtime=0))
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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "there is no text source '.*none.txt': it must be pydoc"),
        ("x.pdf", b"%PDF", r"x.pdf is not a file or folder of .txt, .md, .jsonl"),
        ("x.txt", b"\xff\xfe", "x.txt is not UTF-8 text: invalid start byte at byte 0"),
        ("x.txt", b"  \n", "there is no text in"),
        ("x.txt.gz", b"not gzip", "cannot read .*x.txt.gz: Not a gzipped file"),
        (
            "x.txt.gz",
            gzip.compress(b"text" * 99, mtime=0)[:20],
            "cannot read .*x.txt.gz: Compressed file",
        ),
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
