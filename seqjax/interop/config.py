"""The config of a model that came from another project."""

import dataclasses
import json

from seqjax import models


@dataclasses.dataclass(unsafe_hash=True)
class Config(models.LanguageModelConfig):
    """A model's config with what it was read from.

    Attributes:
      source: text of the config.json, which saving writes again.
      layout: which names and shapes the tensors had, where a family has more
        than one layout; "" is the one of its own `save_pretrained`.
    """

    source: str = ""
    layout: str = ""

    @property
    def family(self) -> str:
        """Its model_type."""
        return json.loads(self.source)["model_type"]
