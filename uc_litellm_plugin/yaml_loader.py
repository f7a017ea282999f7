"""YAML as settings are written in it: a key that stands twice is a mistake, and so is a value that cannot be."""

from __future__ import annotations

from typing import Any

import yaml

_LONGEST_NAME = 60


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with a `YAMLError` for what that passes over or fails on in its own code."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written; once it is a dict, `<<` has put keys of others into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    problem=f"the key {key.value[:_LONGEST_NAME]!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; 2026-02-30 and `!!int "0x"` look like one and are none."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            raise yaml.constructor.ConstructorError(
                problem="a value that cannot be", problem_mark=node.start_mark
            ) from None
