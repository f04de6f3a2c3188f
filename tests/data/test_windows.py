"""Windows of whole documents: seeded, disjoint by role, scored once each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.texts import TEXTS, WIKITEXT
from helpers.toys import byte_tokenizer
from lightstride.data.documents import document_id
from lightstride.data.windows import Windows, check_disjoint, packed_windows, strided_windows
from lightstride.errors import DataError


@pytest.mark.parametrize("add_bos", [False, True])
def test_packs_whole_documents_as_the_tokenizer_wants(jsonl: str, add_bos: bool) -> None:
    tokenizer = byte_tokenizer(add_bos=add_bos)
    packed = packed_windows(jsonl, tokenizer, num_tokens=2000, window=96)
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
        "import sys; from lightstride.data.windows import packed_windows;"
        "from helpers.toys import byte_tokenizer;"
        "windows = packed_windows(sys.argv[1], byte_tokenizer(), num_tokens=900, window=90);"
        "print(windows.sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, jsonl],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    here = packed_windows(jsonl, byte_tokenizer(), num_tokens=900, window=90, seed=0)
    assert done.stdout.strip() == here.sha256, done.stderr
    assert (
        packed_windows(jsonl, byte_tokenizer(), num_tokens=900, window=90, seed=4).sha256
        != here.sha256
    )


def test_one_long_document_does_not_fill_everything(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    long = "long " * 40_000
    path.write_text("\n".join(json.dumps({"text": text}) for text in [long, *TEXTS]))
    for seed in range(5):
        packed = packed_windows(str(path), byte_tokenizer(), num_tokens=4000, window=100, seed=seed)
        assert len(packed.documents) > 20
    enough = packed_windows(str(path), byte_tokenizer(), num_tokens=100_000, window=100)
    assert enough.num_tokens == 100_000


def test_too_little_text_says_how_much_there_is(jsonl: str) -> None:
    with pytest.raises(DataError, match=r"texts.jsonl has [\d,]+ tokens; 1,000,000 are needed"):
        packed_windows(jsonl, byte_tokenizer(), num_tokens=1_000_000, window=1000)
    with pytest.raises(DataError, match=r"has [\d,]+ tokens; 9,999 are needed"):
        strided_windows(jsonl, byte_tokenizer(), window=9999)
    skip = frozenset(map(document_id, TEXTS))
    with pytest.raises(DataError, match="has 0 tokens left; 10 are needed"):
        packed_windows(jsonl, byte_tokenizer(), num_tokens=10, window=10, skip=skip)


def test_fewer_tokens_are_all_that_there_are_and_a_window_at_least(jsonl: str) -> None:
    wanted = {"tokenizer": byte_tokenizer(), "num_tokens": 1_000_000, "fewer": True}
    found = packed_windows(jsonl, window=90, **wanted)  # type: ignore[arg-type]
    whole = packed_windows(jsonl, byte_tokenizer(), num_tokens=found.tokens_NL.numel(), window=90)
    assert torch.equal(found.tokens_NL, whole.tokens_NL)
    with pytest.raises(DataError, match="are needed"):
        packed_windows(jsonl, byte_tokenizer(), num_tokens=10_000_000, window=90)
    with pytest.raises(DataError, match=r"1,000,000 are needed"):
        packed_windows(jsonl, window=1_000_000, **wanted)  # type: ignore[arg-type]


def test_roles_are_disjoint_by_document(jsonl: str) -> None:
    tokenizer = byte_tokenizer()
    calibration = packed_windows(jsonl, tokenizer, num_tokens=900, window=90)
    search = packed_windows(jsonl, tokenizer, num_tokens=900, window=90, skip=calibration.documents)
    used = calibration.documents | search.documents
    held_out = strided_windows(jsonl, tokenizer, window=90, skip=used, num_tokens=900)
    check_disjoint(calibration=calibration, search=search, held_out=held_out)
    given = packed_windows("self", tokenizer, num_tokens=900, window=90, skip=used, documents=TEXTS)
    check_disjoint(calibration=calibration, search=given)
    again = packed_windows(jsonl, tokenizer, num_tokens=900, window=90, skip=search.documents)
    with pytest.raises(DataError, match=r"calibration \(.*\) and search \(.*\) share \d documents"):
        check_disjoint(calibration=calibration, search=again)


def test_whole_text_is_tokenized_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "wiki.raw").write_text(WIKITEXT)
    tokenizer = byte_tokenizer(add_bos=True)
    windows = strided_windows(str(tmp_path / "wiki.raw"), tokenizer, window=16)
    assert tokenizer.decode(windows.tokens_NL.flatten()) == WIKITEXT[: len(WIKITEXT) // 16 * 16]
    assert len(windows.documents) == 2
    third = strided_windows(str(tmp_path / "wiki.raw"), tokenizer, window=16, every=3)
    assert torch.equal(third.tokens_NL, windows.tokens_NL[::3])


def test_strides_score_every_token_once(jsonl: str) -> None:
    windows = strided_windows(jsonl, byte_tokenizer(), window=64, stride=24)
    assert torch.equal(windows.tokens_NL[0, 24:], windows.tokens_NL[1, :40])
    assert windows.context_N.tolist() == [0] + [40] * (len(windows.tokens_NL) - 1)


def test_the_hash_tells_tokens_apart() -> None:
    def windows(token: int) -> Windows:
        zeros = torch.zeros(1, dtype=torch.int64)
        return Windows(torch.tensor([[1, token]]), frozenset(), "x", zeros)

    assert windows(1).sha256 == windows(1).sha256 != windows(2).sha256
