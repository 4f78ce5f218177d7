import signal

import pytest

from sinotherm.cli.interruption import interruptible


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_effect_before_the_next_item(number):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    got = []

    def take(item):
        if item == 2:
            signal.raise_signal(number)
        got.append(item)

    with interruptible() as checked, pytest.raises(KeyboardInterrupt):
        list(map(take, checked(range(5))))
    assert got == [0, 1, 2]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_signal_interrupts_at_once():
    with interruptible():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
