"""datastill distils big datasets into tiny synthetic ones that train models almost as well."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastill.artifact import Artifact as Artifact
    from datastill.artifact import load as load
    from datastill.artifact import save as save
    from datastill.condense.graph import condense_graph as condense_graph
    from datastill.condense.graphs import condense_graphs as condense_graphs
    from datastill.condense.images import condense_images as condense_images
    from datastill.condense.interactions import condense_interactions as condense_interactions
    from datastill.condense.text import condense_text as condense_text
    from datastill.errors import ArtifactError as ArtifactError
    from datastill.errors import DatastillError as DatastillError
    from datastill.errors import DivergenceError as DivergenceError
    from datastill.errors import InputError as InputError
    from datastill.errors import MissingExtraError as MissingExtraError
    from datastill.evaluation import evaluate as evaluate
    from datastill.loop import Result as Result
    from datastill.loop import distill as distill
    from datastill.objectives.coresets import coreset as coreset
    from datastill.recipe import Recipe as Recipe
    from datastill.recipebook import recipes as recipes

# Public names and where they live. They are imported on first use: `import datastill` stays quick and needs no extra.
_HOMES = {
    "Artifact": "artifact",
    "load": "artifact",
    "save": "artifact",
    "condense_graph": "condense.graph",
    "condense_graphs": "condense.graphs",
    "condense_images": "condense.images",
    "condense_interactions": "condense.interactions",
    "condense_text": "condense.text",
    "ArtifactError": "errors",
    "DatastillError": "errors",
    "DivergenceError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "evaluate": "evaluation",
    "Result": "loop",
    "distill": "loop",
    "Recipe": "recipe",
    "coreset": "objectives.coresets",
    "recipes": "recipebook",
}

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "ArtifactError",
    "DatastillError",
    "DivergenceError",
    "InputError",
    "MissingExtraError",
    "Recipe",
    "Result",
    "__version__",
    "condense_graph",
    "condense_graphs",
    "condense_images",
    "condense_interactions",
    "condense_text",
    "coreset",
    "distill",
    "evaluate",
    "load",
    "recipes",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"datastill.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'datastill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
