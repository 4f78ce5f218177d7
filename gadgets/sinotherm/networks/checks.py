"""What a model card holds, checked against the annotations of its dataclasses.

By pydantic. A machine that only trains may have none: there the same annotations are read without it, and a value
is taken only as it is written, of exactly its type.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
else:
    try:
        from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
    except ModuleNotFoundError:
        ConfigDict = Field = dict
        TypeAdapter = ValidationError = None

        def AfterValidator(check):  # noqa: N802 (pydantic's name)
            """Return what `_plain` applies to a value."""
            return check


__all__ = ["AfterValidator", "ConfigDict", "Field", "checked"]

T = TypeVar("T")

_BOUNDS: Final = {"ge": "at least", "gt": "more than", "min_length": "a length of at least"}


def checked(kind: type[T], values: Mapping[str, Any] | str | bytes) -> T:
    """Return a dataclass of values, or of JSON text.

    Raises
    ------
    ValueError
        A name is missing or unknown, or a value is of another type or out of its bounds: each with its place.
    """
    if TypeAdapter is None:
        return _plain(json.loads(values) if isinstance(values, str | bytes) else values, kind, "")
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(values) if isinstance(values, str | bytes) else adapter.validate_python(values)
    except ValidationError as error:
        raise ValueError(_problems(error)) from None


def _problems(error: ValidationError) -> str:
    """Return what is wrong, each with its place and value."""
    return "; ".join(
        f"{'.'.join(map(str, one['loc']))} = {one['input']!r:.60}: {one['msg']}".removeprefix(" = ")
        for one in error.errors()
    )


def _plain(value: Any, hint: Any, place: str) -> Any:
    """Return a value of an annotated type without pydantic; raise a `ValueError` for the first that is none."""
    origin, parts = get_origin(hint), get_args(hint)
    shown = f"{place} = {value!r:.60}".removeprefix(" = ")
    if origin is Annotated:
        found = _plain(value, parts[0], place)
        for rule in parts[1:]:
            found = _applied(rule, found, shown) if callable(rule) else _within(found, rule, shown)
        return found
    if is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        if not isinstance(value, Mapping):
            raise ValueError(f"{shown}: names with values are needed")
        places = {name: f"{place}.{name}".removeprefix(".") for name in value}
        for name in value:
            if name not in {item.name for item in fields(hint)}:
                raise ValueError(f"{places[name]} = {value[name]!r:.60}: it is unknown")
        given = {name: _plain(one, hints[name], places[name]) for name, one in value.items()}
        build: Any = hint
        return _applied(lambda known: build(**known), given, place or "the whole")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{shown}: a list is needed")
        wanted = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(value) != len(wanted):
            raise ValueError(f"{place}.{min(len(value), len(wanted))}: a list of {len(wanted)} values is needed")
        return tuple(_plain(one, kind, f"{place}.{n}") for n, (one, kind) in enumerate(zip(value, wanted, strict=True)))
    if origin is Literal:
        fits = value in parts
    elif origin is Mapping:
        fits = isinstance(value, dict)
    else:
        kinds = (int, float) if hint is float else parts or (hint,)
        fits = type(value) in kinds and (type(value) is not float or math.isfinite(value))
    if not fits:
        raise ValueError(f"{shown}: it must be {hint if parts else hint.__name__}")
    return value


def _applied(rule: Callable[[Any], Any], value: Any, shown: str) -> Any:
    """Return what a rule makes of a value; a refusal says of what."""
    try:
        return rule(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shown}: {error}") from None


def _within(value: Any, bounds: Mapping[str, Any], shown: str) -> Any:
    """Return a value within its bounds, those of pydantic's ``Field``."""
    for name, bound in bounds.items():
        needed, size = _BOUNDS[name], len(value) if name == "min_length" else value
        if size < bound or (name == "gt" and size == bound):
            raise ValueError(f"{shown}: {needed} {bound} is needed")
    return value
