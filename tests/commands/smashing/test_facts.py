"""Where the drafts that a training began with come from."""

from lightstride.commands.smashing.facts import start_provenance


def test_the_built_in_grafts_tell_how_they_were_trained() -> None:
    found = start_provenance("smollm2-135m-smash")
    assert found is not None
    assert found["command"]
    assert found["training"]["answers"] > 1000
    assert "losses" not in found["training"]
    assert found["started_from"]["training"]["answers"] > 1000


def test_no_start_has_no_provenance() -> None:
    assert start_provenance(None) is None
