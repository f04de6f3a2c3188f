"""Every test runs without a network, with its own cache folder, and on one thread.

TEST_THREADS=2 runs them on two: no result may hang on how many there are.
"""

import atexit
import gc
import os
import shutil
import socket
import sys
import tempfile

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "LIGHTSTRIDE_CACHE" not in os.environ:  # workers and processes of tests share the first one's
    os.environ["LIGHTSTRIDE_CACHE"] = tempfile.mkdtemp(prefix="lightstride-tests-")
    atexit.register(shutil.rmtree, os.environ["LIGHTSTRIDE_CACHE"], ignore_errors=True)

import torch  # after the environment is set, which the hub reads at import

THREADS = int(os.environ.get("TEST_THREADS", "1"))
torch.set_num_threads(THREADS)


def pytest_collection_finish() -> None:
    """Keep the collector from looking through all that was imported, again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed, and why: a run that is cut short has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        why = "\n".join(report.longreprtext.splitlines()[-12:])
        sys.__stderr__.write(f"\n{report.nodeid} ({report.when}) failed:\n{why}\n")


LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where a test reaches for anything but this machine."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers and threads in every test, whichever ran before."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def steady_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same costs of a forward in every run: columns are cheap, so that drafts are checked."""
    costs = sys.modules.get("lightstride.smash.decode.costs")
    if costs is not None:
        monkeypatch.setattr(
            costs,
            "measure_forwards",
            lambda _, rows: [(rows * q, 1 + 0.01 * rows * q) for q in (1, 32)],
        )
