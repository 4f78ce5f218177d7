import threading
from pathlib import Path

import pytest
import torch

from sinotherm.networks.workers import Workers
from sinotherm.operators.crew import crew


class Network:
    """What stands for a network."""


@pytest.fixture
def workers():
    made = Workers(Network(), Network, 2)
    yield made
    made.close()


def test_work_is_done_side_by_side(workers):
    both = threading.Barrier(2, timeout=30)

    def work(network):
        both.wait()  # breaks where only one of them runs
        return network

    one, other = [wait() for wait in [workers.begin(work, alone=False) for _ in range(2)]]
    assert one is not other


def test_a_worker_keeps_its_network(workers):
    waits = [workers.begin(lambda network: (network, threading.current_thread()), alone=False) for _ in range(20)]
    found = {wait() for wait in waits}
    assert len(found) == len({network for network, _ in found}) == len({thread for _, thread in found}) <= 2


def test_the_caller_and_the_workers_share_no_network(workers):
    both = threading.Barrier(2, timeout=30)

    def work(network):
        both.wait()
        return network

    waits = [workers.begin(work, alone=False) for _ in range(2)]
    own = workers.begin(lambda network: network, alone=True)()
    assert own not in [wait() for wait in waits]


def test_alone_the_caller_works_at_once(workers):
    done = []
    wait = workers.begin(lambda _: done.append(threading.current_thread()) or "image", alone=True)
    assert done == [threading.current_thread()]
    assert wait() == "image"


def test_a_single_worker_is_the_caller():
    workers = Workers(Network(), lambda: pytest.fail("a second network is built"), 1)
    assert workers.begin(lambda _: threading.current_thread(), alone=False)() is threading.current_thread()
    workers.close()


def test_a_worker_takes_one_core(workers):
    layer, image = torch.nn.Conv2d(16, 16, 3), torch.zeros(1, 16, 256, 256)

    def work(_):
        before = len(list(Path("/proc/self/task").iterdir()))
        layer(image)
        return len(list(Path("/proc/self/task").iterdir())) - before

    # Each thread that computes on several cores has helpers of its own.
    assert workers.begin(work, alone=False)() == 0


def test_threads_of_the_caller_and_of_threads_to_come_stay(workers):
    before = torch.get_num_threads()
    workers.begin(lambda _: None, alone=False)()
    assert torch.get_num_threads() == before
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]


def test_a_failure_comes_with_the_result(workers):
    wait = workers.begin(lambda _: 1 / 0, alone=False)
    with pytest.raises(ZeroDivisionError):
        wait()
    assert workers.begin(lambda _: "next", alone=False)() == "next"


def test_kernels_of_a_worker_stay_in_its_thread(workers):
    def work(_):
        found = set()
        crew.run(lambda _: found.add(threading.current_thread()), 16)
        return found == {threading.current_thread()}

    assert workers.begin(work, alone=False)()
