import signal

import pytest

from sinotherm.cli.interruption import interruptible, shielding


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
    got = []

    def work():
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            got.append("at once")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert got == ["at once"]


@pytest.mark.parametrize("last", [True, False])
def test_a_signal_at_the_last_item_or_after_it_is_no_success(last):
    got = []

    def work():
        with interruptible() as checked:
            for item in checked(range(1)):
                got.append(item)
                if last:
                    signal.raise_signal(signal.SIGTERM)
            got.append("end")
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert got == ([0] if last else [0, "end"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_shield_lets_what_runs_come_to_its_end(number):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    got = []

    def take(item):
        signal.raise_signal(number)
        got.append(item)

    with shielding() as shield:
        assert list(shield.items(iter(range(3)))) == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                shield.run(take, 1)
        # Anywhere else at once.
        with pytest.raises(KeyboardInterrupt):
            take(2)
    assert got == [1, 1]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_signal_passes_the_shield_and_an_error_is_not_hidden():
    def twice():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError

    with shielding() as shield:
        with pytest.raises(ZeroDivisionError):
            shield.run(twice)
        assert shield.run(int, "3") == 3
