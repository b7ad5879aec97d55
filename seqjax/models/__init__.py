"""Models from a layer pattern, with one explicit cache."""

from seqjax.models.accounting import abstract_parameters as abstract_parameters
from seqjax.models.accounting import flops_per_token as flops_per_token
from seqjax.models.accounting import parameter_count as parameter_count
from seqjax.models.accounting import state_bytes as state_bytes
from seqjax.models.accounting import weight_decay_mask as weight_decay_mask
from seqjax.models.across import Across as Across
from seqjax.models.cache import ModelCache as ModelCache
from seqjax.models.config import LanguageModelConfig as LanguageModelConfig
from seqjax.models.language_model import LanguageModel as LanguageModel
