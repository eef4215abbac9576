"""A fast decoder for a body, derived from its pydantic model, so that each body is declared once.

The fast decoder accepts only plain, well-formed bodies. It returns None for all others, and for those that it cannot
judge (with an escape, a null, or a fraction). Then the slow validator reads the bytes and lists every fault. A
differential test proves that the two agree.
"""

import types
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

_DEEPEST = 16


def decoder(model: type[BaseModel]) -> Callable[[bytes], Any]:
    """A function from a body's bytes to an object with the fields of `model`; it returns None if it cannot judge them.

    Missing fields are None, even if the model has another default.
    """
    struct = _struct(model)
    decode, encode = msgspec.json.Decoder(struct).decode, msgspec.json.Encoder().encode
    free = [field.name for field in msgspec.structs.fields(struct) if _is_free(field.type)]

    def fast(body: bytes) -> Any:
        if b"\\" in body or b"null" in body:
            return None
        try:
            found = decode(body)
            # Without escapes, each string has two quotation marks, so the decoded value must have as many as the body.
            # A duplicate key makes a difference, because the decoder keeps one.
            if encode(found).count(b'"') != body.count(b'"'):
                return None
            return None if any(_is_unsure(getattr(found, name), 0) for name in free) else found
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    return fast


def _is_free(kind: Any) -> bool:
    """Whether a value of this type may contain any JSON value, or a float."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return any(_is_free(field.type) for field in msgspec.structs.fields(kind))
    return kind in (Any, float) or any(_is_free(part) for part in typing.get_args(kind))


def _is_unsure(value: Any, depth: int) -> bool:
    """Whether a value contains a float, which may differ from the number in the body, or is nested too deep."""
    if isinstance(value, msgspec.Struct):
        value = [getattr(value, name) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return isinstance(value, float)
    return depth > _DEEPEST or any(_is_unsure(entry, depth + 1) for entry in value)


def _struct(model: type[BaseModel]) -> type[msgspec.Struct]:
    fields = [_field(name, field) for name, field in model.model_fields.items()]
    checks = [
        (name, check)
        for name, field in model.model_fields.items()
        for check in _checks(field.annotation, field.metadata)
    ]

    def check_fields(struct: msgspec.Struct) -> None:
        for name, check in checks:
            if (value := getattr(struct, name)) is not None:
                check(value)  # msgspec makes a ValidationError of a ValueError

    return msgspec.defstruct(
        f"Fast{model.__name__}",
        fields,
        namespace={"__post_init__": check_fields} if checks else None,
        forbid_unknown_fields=model.model_config.get("extra") == "forbid",
        omit_defaults=True,
        kw_only=True,
    )


def _checks(annotation: Any, metadata: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """The functions that the model calls with a field, once its type and its bounds are right."""
    found: list[Any] = [part.func for part in metadata if isinstance(part, AfterValidator)]
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        found += _checks(parts[0], parts[1:])
    elif origin in (types.UnionType, typing.Union):
        found += [check for part in parts for check in _checks(part, ())]
    return found


def _field(name: str, field: FieldInfo) -> Any:
    kind = _kind(field.annotation, field.metadata)
    # A missing field is None here whatever its default, or `decoder` would count a default as a string of the body.
    return (name, kind) if field.is_required() else (name, kind | None, None)


def _kind(annotation: Any, metadata: list[Any]) -> Any:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *more = typing.get_args(annotation)
        extra = [part for entry in more for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
        return _kind(inner, [*metadata, *extra])
    if origin in (types.UnionType, typing.Union):
        kinds = [_kind(part, metadata) for part in typing.get_args(annotation)]
        return typing.Union[tuple(kinds)]  # noqa: UP007 - made of values
    if origin is Literal or annotation in (Any, type(None)):
        return annotation
    if origin is list:
        (inner,) = typing.get_args(annotation)
        return _constrained(types.GenericAlias(list, (_kind(inner, []),)), metadata)
    if annotation is Decimal:
        return float  # `_is_unsure` rejects it: a float is not exact
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _struct(annotation)
    return _constrained(annotation, metadata)


def _constrained(kind: Any, metadata: list[Any]) -> Any:
    meta: dict[str, Any] = {}
    for constraint in metadata:
        match constraint:
            case Ge(ge=bound):
                meta["ge"] = bound
            case Le(le=bound):
                meta["le"] = bound
            case MinLen(min_length=bound):
                meta["min_length"] = bound
            case MaxLen(max_length=bound):
                meta["max_length"] = bound
            case _ if kind is str and getattr(constraint, "pattern", None):
                meta["pattern"] = constraint.pattern
    fitting = {int: ("ge", "le"), str: ("min_length", "max_length", "pattern")}.get(kind, ("min_length", "max_length"))
    meta = {name: bound for name, bound in meta.items() if name in fitting}
    return Annotated[kind, msgspec.Meta(**meta)] if meta else kind
