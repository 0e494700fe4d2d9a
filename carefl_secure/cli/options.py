"""Commands with many options: one frozen dataclass in place of as many parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def unfold(command: Callable[..., None]) -> Callable[..., None]:
    """Offer the fields of a command's dataclass parameter to typer as its options.

    The fields, annotated as typer wants parameters annotated, take the place of the parameter in the signature, in
    their order; the command gets the dataclass. TypeError is raised where the command has no such parameter.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    packed: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(_keyword(name, kind, parameter.default))
            continue
        packed[name] = kind  # type: ignore[assignment]
        inside = get_type_hints(kind, include_extras=True)
        parameters += [
            _keyword(
                field.name,
                inside[field.name],
                inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            )
            for field in dataclasses.fields(kind)
        ]
    if not packed:
        raise TypeError(f"{command.__name__} takes no dataclass of options")

    @functools.wraps(command)
    def unfolded(**given: Any) -> None:
        for name, kind in packed.items():
            fields = dataclasses.fields(kind)
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields})
        command(**given)

    vars(unfolded)["__signature__"] = inspect.Signature(parameters)
    unfolded.__annotations__ = {one.name: one.annotation for one in parameters}
    return unfolded


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
