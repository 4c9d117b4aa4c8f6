"""Reads a configuration: a YAML file, `${root}` in its values, and `key=value` overrides."""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simplear_rl.config.base import absolute
from simplear_rl.config.keys import Node, children, items, known_keys, nodes_of
from simplear_rl.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)
VALUE = 200  # characters of a value that a message shows


def load_config(schema: type[Schema], file: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read a YAML file and apply `key.sub=value` overrides.

    The type of its key says how a value is read: text and paths as they stand, numbers, true and false, null where the
    key may be null. Those of overrides are sections and lists as YAML in one line.

    Raises:
        UserError: unreadable file, broken YAML, malformed override, unknown key (nearest valid name offered) or bad
            value; the message names the file or the override.
    """
    values = _read(schema, Path(file))
    for override in overrides:
        _apply(schema, values, override)
    try:
        if isinstance(values.get("root"), str):
            values["root"] = str(absolute(Path(values["root"])))
            values = _with_root(values, values["root"])
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_explain(schema, problem) for problem in error.errors()]
        raise UserError("\n".join([f"{file}{' with overrides' if overrides else ''}:", *problems])) from None
    except ValueError as error:
        raise UserError(f"{file}: root: {error}") from error


def _read(schema: type[BaseModel], file: Path) -> dict[str, Any]:
    """The values of a YAML file. Raises UserError."""
    root = schema.model_json_schema()
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
        _require_single_keys(tree)
        values = _build(tree, [root], root.get("$defs", {})) if tree else None
    except RecursionError as error:
        raise UserError(f"{file}: a value contains itself") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8
        raise UserError(f"{file}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


def _require_single_keys(tree: yaml.Node | None) -> None:
    """Raise ValueError if a key stands twice in a section: YAML would take the last one."""
    nodes, seen = [tree], set[int]()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ValueError(f"line {line}: `{name}` stands there twice, first in line {lines[name]}")
            lines[name] = line
            nodes.append(value)


def _with_root(value: Any, root: str) -> Any:
    """`value` with every ${root} replaced."""
    if isinstance(value, dict):
        return {key: _with_root(part, root) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_root(part, root) for part in value]
    return value.replace("${root}", root) if isinstance(value, str) else value


def _apply(schema: type[BaseModel], values: dict[str, Any], override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{override!r}: an override is written key=value, for example learner.zero_stage=2")
    value = _parse(override, *nodes_of(schema, key))
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        values = values.setdefault(name, {}) if isinstance(values, dict) else values
        if not isinstance(values, dict):
            raise UserError(f"{override!r}: {'.'.join(sections[: depth + 1])} is not a section")
    values[last] = value


def _parse(override: str, nodes: list[Node], definitions: Node) -> Any:
    """The value of an override, for a key of which the schema says `nodes`. Raises UserError."""
    key, _, text = override.partition("=")
    types = {node.get("type") for node in nodes}
    if not text and any(node.get("format") == "path" for node in nodes):
        raise UserError(f"{override!r}: {key}: expected a path, found nothing")
    if "string" in types or not types & {"object", "array"}:
        return _scalar(text, nodes)
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        _require_single_keys(tree)
        return _build(tree, nodes, definitions) if tree else text
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        expected = "a section, {key: value, ...}" if "object" in types else "a list, [value, ...]"
        raise UserError(f"{override!r}: {key}: expected {expected}; not YAML: {error}") from error


def _build(tree: yaml.Node, nodes: list[Node], definitions: Node) -> Any:
    """The value of a YAML tree; what it holds is read by the type of its key as well."""
    if tree.tag not in yaml.SafeLoader.yaml_constructors:
        raise ValueError(f"line {tree.start_mark.line + 1}: {tree.tag}: no such type of value")
    if isinstance(tree, yaml.MappingNode):
        yaml.SafeLoader("").flatten_mapping(tree)  # `<<: *section`
        if any(node.get("additionalProperties") is True for node in nodes):  # the schema says nothing of its values
            return yaml.safe_load(yaml.serialize(tree))
        pairs = [(str(name.value), part) for name, part in tree.value]
        return {name: _build(part, children(nodes, name, definitions), definitions) for name, part in pairs}
    if isinstance(tree, yaml.SequenceNode):
        return [_build(part, items(nodes, definitions), definitions) for part in tree.value]
    assert isinstance(tree, yaml.ScalarNode)
    if tree.tag.endswith(":null"):
        return None
    return tree.value if tree.style else _scalar(tree.value, nodes)  # style: in quotes


def _scalar(text: str, nodes: list[Node]) -> Any:
    """A text as a value of the schema's type, or the text itself: pydantic says what does not fit."""
    types = {node.get("type") for node in nodes}
    if text == "null" and "null" in types:
        return None
    if text in ("true", "false") and "boolean" in types:
        return text == "true"
    if "string" not in types and types & {"integer", "number"}:
        with suppress(ValueError):
            return int(text) if "integer" in types else float(text)
    return text


def _explain(schema: type[BaseModel], problem: ErrorDetails) -> str:
    """One line for one of pydantic's errors: key, what was expected, what was found."""
    loc, tag = _without_tags(schema, problem["loc"])
    key = ".".join(str(part) for part in loc)
    match problem["type"]:
        case "extra_forbidden":
            known = ".".join(part for part in loc if isinstance(part, str))
            section, dot, name = str(loc[-1]).partition(".")
            if dot and known in known_keys(schema):
                return f"  {key}: dots are for the command line; here `{section}:` and below it `  {name}: ...`"
            nearest = difflib.get_close_matches(known, set(known_keys(schema)) - {known}, n=1, cutoff=0)
            return f"  {key}: unknown key{f' of type {tag}' if tag else ''}; did you mean {nearest[0]}?"
        case "missing":
            return f"  {key}: missing"
        case "union_tag_not_found":
            return f"  {key}.type: missing"
        case "union_tag_invalid":
            expected = problem["ctx"]["expected_tags"]
            return f"  {key}.type: expected one of {expected}, found {problem['ctx']['tag']!r}"
        case "model_type":
            return f"  {key}: expected a section, {{key: value, ...}}, found {_short(problem['input'])}"
    found = "" if problem["type"] == "value_error" else f", found {_short(problem['input'])}"
    return f"  {key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}{found}"


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= VALUE else f"{text[:VALUE]}..."


def _without_tags(schema: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[int | str], str | None]:
    """A place in the configuration as the user writes it, and the type of the union's class that it lies in.

    Where a section is one of several classes, pydantic puts the value of `type` between its key and theirs.
    """
    sections, kept, tag = [schema], [], None
    for part in loc:
        field = next((s.model_fields[part] for s in sections if part in s.model_fields), None)
        if isinstance(part, int) or field or len(sections) == 1:
            kept.append(part)
            sections = _sections_of(field.annotation) if field else sections
        elif chosen := [s for s in sections if part in get_args(s.model_fields["type"].annotation)]:
            sections, tag = chosen, str(part)
    return kept, tag


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names: itself, or what an optional, a list or a union holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_of(part)]
