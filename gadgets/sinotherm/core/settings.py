"""The one schema of stage settings: name, unit, range, default and a sentence.

The same ``stage.setting`` names work as ``<property>`` in a pipeline's XML, in FIRE's JSON and in
``--set``; values may come as text ("True", "3", "0,1,2").
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticUndefined

from sinotherm.errors import SettingsError

__all__ = ["EVERY_VALUE", "NOT_EMPTY", "StageSettings", "setting"]

EVERY_VALUE: Final = r"^"
NOT_EMPTY: Final = r"(?s)."
"""Patterns for ``local`` of `setting`."""


def setting(default: Any, sentence: str, *, unit: str = "", local: str = "", **bounds: Any) -> Any:
    """Return the field of a setting.

    Parameters
    ----------
    default
        Its default value.
    sentence
        One sentence that says what it does.
    unit
        SI unit of the value, empty where there is none.
    local
        Regular expression that is found in values which name a file, a folder or an endpoint: only the
        user of this machine may give those, no network peer. Empty where no value does.
    **bounds
        ``ge``, ``gt``, ``le``, ``lt``, ``min_length``, ``max_length`` as in pydantic.
    """
    return Field(default=default, description=sentence, json_schema_extra={"unit": unit, "local": local}, **bounds)


class StageSettings(BaseModel):
    """Base of the settings of a stage: frozen, finite, and unknown names are errors."""

    # NaN is in no order: as a limit it is never exceeded, and as a bound it bounds nothing.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: Any) -> Any:
        """Accept "1,2,3" where a tuple is meant, and "8" where one of some numbers is: XML and FIRE carry text only."""
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, str) and get_origin(kind) is tuple:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str) and get_origin(kind) is Literal:
            return next((choice for choice in get_args(kind) if str(choice) == value.strip()), value)
        return value

    @classmethod
    def parse(cls, stage: str, values: Mapping[str, Any]) -> Self:
        """Return checked settings.

        Raises
        ------
        SettingsError
            A name is unknown (the known ones are listed), a value is out of range, or values contradict each other.
        """
        cls._check_names(stage, values)
        try:
            return cls(**values)
        except ValidationError as error:
            raise cls._refusal(stage, error.errors()) from None

    @classmethod
    def check(cls, stage: str, values: Mapping[str, Any]) -> None:
        """Check values to which others will be added: each by itself, not whether they go together.

        Raises
        ------
        SettingsError
            A name is unknown (the known ones are listed) or a value is out of range.
        """
        cls._check_names(stage, values)
        try:
            cls(**values)
        except ValidationError as error:
            # What is wrong with all of them together stands at no field.
            if problems := [problem for problem in error.errors() if problem["loc"]]:
                raise cls._refusal(stage, problems) from None

    @classmethod
    def _check_names(cls, stage: str, values: Mapping[str, Any]) -> None:
        known = cls.model_fields
        for name in values:
            if name not in known:
                names = ", ".join(f"{stage}.{other}" for other in known) or "none"
                raise SettingsError(f"unknown setting {stage}.{name}; known settings of this stage: {names}.")

    @classmethod
    def _refusal(cls, stage: str, problems: Sequence[ErrorDetails]) -> SettingsError:
        parts = []
        for problem in problems:
            name = ".".join(str(part) for part in problem["loc"][:1]) or "settings"
            given = problem.get("input")
            unit = cls.unit(name)
            suffix = f" [{unit}]" if unit else ""
            parts.append(f"{stage}.{name}{suffix} = {given!r}: {problem['msg']}")
        return SettingsError("; ".join(parts) + ".")

    @classmethod
    def refuse_foreign(cls, stage: str, values: Mapping[str, Any]) -> None:
        """Check what a network peer gives, before it is used; unknown names are left to `parse`.

        Raises
        ------
        SettingsError
            A value names a file, a folder or an endpoint (``local`` of `setting`).
        """
        for name, value in values.items():
            local = cls._extra(name, "local")
            if local and re.search(local, str(value)):
                raise SettingsError(
                    f"{stage}.{name} = {str(value)[:80]!r} is refused from a network peer: files, folders and "
                    f"endpoints of this machine are named by its user only, with --set {stage}.{name}=… of sinotherm "
                    "recon, serve or node, or in a pipeline's file in a folder of --pipelines."
                )

    @classmethod
    def unit(cls, name: str) -> str:
        """Return the unit of a setting, empty where it has none or does not exist."""
        return cls._extra(name, "unit")

    @classmethod
    def _extra(cls, name: str, key: str) -> str:
        field = cls.model_fields.get(name)
        extra = field.json_schema_extra if field is not None else None
        return str(extra.get(key, "")) if isinstance(extra, dict) else ""

    @classmethod
    def rows(cls, stage: str) -> list[tuple[str, str, str, str, str]]:
        """Return (name, default, unit, range, sentence) of every setting, for the documentation.

        The sentence of a setting that no network peer may give (or not every value of) ends with ``Local.``.
        """
        table = []
        for name, field in cls.model_fields.items():
            bounds = ", ".join(
                f"{symbol} {getattr(bound, key)}"
                for bound in field.metadata
                for key, symbol in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
                if hasattr(bound, key)
            )
            choices = cls.model_json_schema()["properties"][name].get("enum")
            if choices:
                bounds = " / ".join(str(choice) for choice in choices)
            default = "" if field.default is PydanticUndefined else str(field.default)
            sentence = field.description or ""
            if cls._extra(name, "local"):
                sentence += " Local."
            table.append((f"{stage}.{name}", default, cls.unit(name), bounds, sentence))
        return table
