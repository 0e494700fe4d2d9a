"""All settings, typed and documented; unknown, invalid and contradictory ones are refused."""

from carefl_secure.config.load import dump_config, load_config
from carefl_secure.config.root import Config
from carefl_secure.config.sections.federation import default_min_survivors

__all__ = ["Config", "default_min_survivors", "dump_config", "load_config"]
