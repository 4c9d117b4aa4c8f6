"""The keys of a schema: their names, and what --help says of them. Both are read from pydantic's JSON schema."""

import json
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from pydantic import BaseModel

Node = dict[str, Any]  # of a JSON schema
NAMES = {"string": "text", "boolean": "true | false", "object": "mapping"}
LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "multiple of {}",
    "pattern": "that matches {}",
}


def known_keys(schema: type[BaseModel]) -> list[str]:
    """All dotted keys of a schema, sections included, each once."""
    root = schema.model_json_schema()
    return list(dict.fromkeys(_keys(root, root.get("$defs", {}), "")))


def nodes_of(schema: type[BaseModel], key: str) -> tuple[list[Node], Node]:
    """What the schema says of a dotted key, and the schema's definitions; nothing of a key that it does not have.

    Each node describes one kind of value: the parts of a union stand side by side, and references are followed.
    """
    root = schema.model_json_schema()
    nodes, definitions = [root], root.get("$defs", {})
    for name in key.split("."):
        nodes = children(nodes, name, definitions)
    return nodes, definitions


def children(nodes: Iterable[Node], name: str, definitions: Node) -> list[Node]:
    """The nodes of the key `name` of sections."""
    found = [node["properties"][name] for node in nodes if name in node.get("properties", {})]
    return [part for node in found for part in kinds(node, definitions)]


def items(nodes: Iterable[Node], definitions: Node) -> list[Node]:
    """The nodes of what lists hold."""
    return [part for node in nodes if "items" in node for part in kinds(node["items"], definitions)]


def kinds(node: Node, definitions: Node) -> list[Node]:
    """A node as nodes of one kind of value each."""
    if "$ref" in node:
        return kinds(definitions[node["$ref"].rpartition("/")[2]], definitions)
    parts = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [kind for part in parts for kind in kinds(part, definitions)] or [node]


def describe_keys(schema: type[BaseModel], width: int) -> str:
    """The keys of a schema with types, defaults and descriptions: a paragraph for each section.

    Args:
        schema: of the configuration.
        width: columns that a line has at most, unless a single word is longer.
    """
    root = schema.model_json_schema()
    return "\n".join([f"  {_summary(root)}", *_paragraphs(root, root.get("$defs", {}), "", {}, width)])


def _keys(section: Node, definitions: Node, prefix: str) -> Iterator[str]:
    for name, node in section["properties"].items():
        yield prefix + name
        for part in _sections(node, definitions):
            yield from _keys(part, definitions, f"{prefix}{name}.")


def _sections(node: Node, definitions: Node) -> list[Node]:
    """The sections that a value can be: itself, what a list holds, or one of several."""
    values = kinds(node, definitions)
    return [value for value in [*values, *items(values, definitions)] if "properties" in value]


def _paragraphs(section: Node, definitions: Node, prefix: str, defaults: Node, width: int) -> Iterator[str]:
    """Lines: the section's own keys, then a heading and a paragraph for each section in it.

    `defaults` is the section that stands where the configuration has none; its values replace the classes' own.
    """
    nodes = {
        name: node | ({"default": defaults[name]} if name in defaults else {})
        for name, node in section["properties"].items()
    }
    inner = {name: _sections(node, definitions) for name, node in nodes.items()}
    own = [name for name in nodes if not inner[name]]
    column = len(prefix) + max(map(len, own), default=0) + 6
    for name in own:
        said = f"{_type(nodes[name])} ({_default(nodes[name])})  {nodes[name].get('description', '')}"
        yield from _wrap(said, width, f"    {prefix}{name}".ljust(column), column)
    for name, sections in inner.items():
        node, default = nodes[name], nodes[name].get("default")
        given = default if isinstance(default, dict) and len(sections) == 1 else {}
        kind = _type(node) if given else f"{_type(node)} ({_default(node)})"
        for part in sections:
            variant = f" ({_variant(part)})" if len(sections) > 1 else ""
            yield ""
            yield from _wrap(f"{prefix}{name}{variant}  {kind}  {_summary(part)}", width, "  ", 4)
            yield from _wrap(node.get("description", ""), width, "    ", 4)
            yield from _paragraphs(part, definitions, f"{prefix}{name}.", given, width)


def _wrap(text: str, width: int, first: str, column: int) -> list[str]:
    return wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * column,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(section: Node) -> str:
    return section.get("description", "").partition("\n")[0]


def _variant(section: Node) -> str:
    """What tells a section of a union from the others: `type: clip`, else the name of its class."""
    constants = [f"{name}: {node['const']}" for name, node in section["properties"].items() if "const" in node]
    return ", ".join(constants) or section["title"]


def _default(node: Node) -> str:
    return _value(node["default"]) if "default" in node else "required"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _type(node: Node) -> str:
    """What a value can be: `integer >= 1`, `mean | std`, `[text, ...]`, `path or null`, `section`."""
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return " | ".join(map(_value, choices))
    if parts := node.get("anyOf", node.get("oneOf")):
        return " or ".join(dict.fromkeys(map(_type, parts)))
    if "$ref" in node:
        return "section"
    if "prefixItems" in node:
        return f"[{', '.join(map(_type, node['prefixItems']))}]"
    if node.get("type") == "array":
        least = f" at least {node['minItems']}" if "minItems" in node else ""
        return f"[{_type(node['items'])}, ...]{least}"
    kind = "path" if node.get("format") == "path" else node.get("type", "value")
    limits = [text.format(node[name]) for name, text in LIMITS.items() if name in node]
    return f"{NAMES.get(kind, kind)} {' and '.join(limits)}".rstrip()
