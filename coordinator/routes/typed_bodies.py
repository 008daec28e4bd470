"""Checks the shape of a large body while it is read, before it becomes Python objects.

A body of 14 MiB can hold five million lists. As objects they take 300 MB, and seconds in which the process
answers nobody. msgspec stops at the first item of a wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from annotated_types import MinLen
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from services.errors import InvalidInput


def typed_route(contract: type[BaseModel]) -> type[APIRoute]:
    """The class of routes whose body is of this contract."""
    decoder = msgspec.json.Decoder(_shape(contract))

    class TypedRoute(APIRoute):
        """Rejects a body of another shape; pydantic checks the values."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """See FastAPI."""
            handle = super().get_route_handler()

            async def handle_checked(request: Request) -> Response:
                _check(decoder, await request.body())
                return await handle(request)

            return handle_checked

    return TypedRoute


def _check(decoder: msgspec.json.Decoder[Any], body: bytes) -> None:
    if not body:
        return
    try:
        decoder.decode(body)
    except msgspec.DecodeError as error:
        # Such as: Expected `object`, got `int` - at `$.epochs[0]`
        message, _, place = str(error).partition(" - at ")
        field = re.sub(r"\[(\d+)\]", r".\1", place.strip("`").removeprefix("$").removeprefix("."))
        field = field.replace("[...]", "").removeprefix(".")
        raise InvalidInput(f"{field}: {message}" if field else message, field=field or None) from error


# A whole number may be written as 1.0.
_SIMPLE = {int: float, float: float, bool: bool, str: str, type(None): None}


def _shape(annotation: Any) -> Any:
    """The type of msgspec that a value in JSON has if it can be valid; bounds are left to pydantic."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = [
            (name, _shape(field.annotation))
            if field.is_required()
            else (name, _shape(field.annotation) | msgspec.UnsetType, msgspec.UNSET)
            for name, field in annotation.model_fields.items()
        ]
        return msgspec.defstruct(annotation.__name__, fields, forbid_unknown_fields=True, kw_only=True)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        shortest = [given.min_length for given in arguments[1:] if isinstance(given, MinLen)]
        item = _shape(arguments[0])
        return Annotated[item, msgspec.Meta(min_length=max(shortest))] if shortest else item
    if origin is tuple:
        return list[_shape(arguments[0])]  # type: ignore[misc]
    if origin in {Union, UnionType}:
        return Union[tuple(_shape(argument) for argument in arguments)]  # noqa: UP007 - built at run time
    return str if origin is Literal else _SIMPLE[annotation]
