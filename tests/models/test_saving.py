"""Files written tensor by tensor are those that transformers writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.toys import TINY, tiny_llama
from lightstride.models.opening.source import Resident
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.saving import save_weights


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shard_bytes", [80_000, 5_000_000])
def test_same_files_as_transformers(name: str, shard_bytes: int, tmp_path: Path) -> None:
    model = TINY[name]()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    (tmp_path / "ours").mkdir()
    (tmp_path / "streamed").mkdir()
    save_weights(Resident(model), model, tmp_path / "ours", shard_bytes)
    source = open_streamed(str(tmp_path / "theirs"), dtype=torch.float32)
    save_weights(source, source.model, tmp_path / "streamed", shard_bytes)
    written = sorted(path.name for path in (tmp_path / "ours").iterdir())
    for path in sorted((tmp_path / "theirs").glob("model*")):
        written.remove(path.name)
        ours = tmp_path / "ours" / path.name
        assert (tmp_path / "streamed" / path.name).read_bytes() == ours.read_bytes()
        if path.suffix == ".json":
            assert json.loads(ours.read_text()) == json.loads(path.read_text())
            continue
        expected, found = load_file(path), load_file(ours)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not written
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    model = tiny_llama()
    save_weights(Resident(model), model, tmp_path, 1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(model.parameters()))
