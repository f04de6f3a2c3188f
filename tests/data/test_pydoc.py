"""The built-in text."""

from lightstride.data.pydoc import library_documents, topic_documents
from lightstride.data.windows import read_documents


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
