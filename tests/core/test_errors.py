import inspect
import re

from sinotherm import errors


def drawn():
    """The tree of the module's docstring as (name, depth)."""
    rows = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+Error)\b", line)
        if match:
            rows.append((match[2], len(match[1]) // 4))
    return rows


def test_the_drawn_tree_is_the_real_one():
    parents = []
    for name, depth in drawn():
        kind = getattr(errors, name)
        del parents[depth:]
        assert kind.__base__ is (parents[-1] if parents else Exception), name
        parents.append(kind)


def test_every_error_is_exported_and_drawn():
    defined = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert defined == set(errors.__all__) == {name for name, _ in drawn()}
    assert errors.__all__ == sorted(errors.__all__)
