"""From file, ``key=value`` words and flags to one checked configuration, and back to text.

A setting that is unknown, renamed, out of range, given twice or contradictory raises `ConfigError`.
A path may stand for a file that comes with the package, in a source tree or in an installed wheel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import carefl_secure
from carefl_secure.config.explain import FLAGS, KNOWN, explain, unknown
from carefl_secure.config.root import Config
from carefl_secure.config.sections.data import SYNTHETIC_RECORDS
from carefl_secure.errors import ConfigError

_YAML_1_1 = re.compile(r"[-+]?0[b0-9][0-9_]*|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|\d{4}-\d\d?-.*")
"""What YAML 1.1 reads as an octal, binary or base-60 number (``010`` as 8, ``1:30`` as 90), or as a date."""


class _Loader(yaml.SafeLoader):
    """A safe loader that takes these for text, as YAML 1.2 does, and refuses a key given twice."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and _YAML_1_1.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, origin: str) -> Any:
    """Read YAML text, refusing a key given twice; errors name ``origin``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not valid YAML; correct it: {error}") from error


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    if key not in KNOWN:
        raise ConfigError(unknown(key))
    *sections, leaf = key.split(".")
    for name in sections:
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name!r} is a section: write its settings below it, indented.")
        settings = inner
    settings[leaf] = value


def load_config(path: Path | None = None, overrides: Sequence[str] = (), **flags: object) -> Config:
    """Build the configuration: defaults, then the file, then ``key=value`` words and flags.

    ``overrides`` are words such as ``privacy.delta=1e-6``, whose value is read as YAML; ``flags`` are short names of
    :data:`FLAGS`, where None stands for a flag that was not given. ``auto`` values are resolved to numbers.
    """
    settings = {} if path is None else read_yaml(path)
    given = parse_words(overrides)
    for name, value in flags.items():
        if value is None:
            continue
        key = FLAGS[name]
        if key in given:
            raise ConfigError(f"{key} is set twice: by --{name.replace('_', '-')} and by --set; give it once.")
        given[key] = str(value) if isinstance(value, Path) else value
    for key, value in given.items():
        _put(settings, key, value)
    config = _checked(settings)
    if FLAGS["epsilon"] in given and config.privacy.unit == "none":
        raise ConfigError(
            "an epsilon was given, but privacy.unit=none switches privacy off; "
            "set privacy.unit=record or leave the epsilon out."
        )
    return config


def build_config(settings: Mapping[str, Any]) -> Config:
    """Build the configuration from settings by dotted key, over the defaults."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        _put(nested, key, value)
    return _checked(nested)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as settings by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in KNOWN:
            found |= flatten(value, f"{key}.")
        elif key in KNOWN:
            found[key] = value
        else:
            raise ConfigError(unknown(key))
    return found


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are YAML."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {word!r} has no '='; write it as section.key=value.")
        if key not in KNOWN:
            raise ConfigError(unknown(key))
        if key in found:
            raise ConfigError(f"{key} is set twice on the command line; give it once.")
        found[key] = parse_yaml(text, f"--set {key}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections; a key that is given twice, and a changed file of a run, are refused."""
    path = resolve_shipped(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error}. Give --config an existing YAML file."
        ) from error
    first, _, rest = text.partition("\n")
    # In a run folder alone: whoever copies a configuration elsewhere does so to change it.
    kept = first.startswith(_SHA256) and (path.parent / "plan.json").exists()
    if kept and with_sha256(rest) != text:
        raise ConfigError(
            f"{path} was changed after it was written; restore it from a copy, or remove its first line where the "
            "change is intended"
        )
    found = parse_yaml(text, str(path))
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no settings; write sections such as 'privacy:' in it.")
    return found


def _checked(settings: dict[str, Any]) -> Config:
    try:
        config = Config.model_validate(settings)
        resolved = config.model_dump()
        resolved["simulation"]["dropout"] = config.dropout
        resolved["adapter"]["head"] = config.head
        resolved["federation"]["local_steps"] = config.local_steps
        resolved["federation"]["local_lr"] = config.local_lr
        resolved["federation"]["server_lr"] = config.server_lr or "auto"
        if config.head == "none":  # so none is trained alone
            resolved["privacy"]["sample_rate"] = config.with_sample_rate().sample_rate
        if config.stages.spaces:
            resolved["stages"]["rounds"] = config.stage_rounds
            resolved["data"]["labels"] = config.stages.spaces[-1]
        if config.data.synthetic and config.data.records is None:
            resolved["data"]["records"] = SYNTHETIC_RECORDS
        return Config.model_validate(resolved)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def dump_config(config: Config) -> str:
    """Return the configuration as YAML; reading it back gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_SHA256 = "# sha256 of the lines below: "


def with_sha256(text: str) -> str:
    """Put a comment before YAML text by which `read_yaml` notices bit rot and accidental edits, but no forger."""
    return f"{_SHA256}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


PREFIX = "carefl:"  # marks a path below the shipped ``configs/``, such as ``carefl:tasks/NAME.yaml``


def shipped_folder(name: str) -> Path:
    """Return ``configs`` or ``threat_models``, of the source tree or else of the wheel."""
    package = Path(carefl_secure.__file__).resolve().parent
    places = (package.parent / name, package / "shipped" / name)
    # An installed package stands among others, one of which may own a folder of the same name.
    if (package.parent / "pyproject.toml").is_file() and places[0].is_dir():
        return places[0]
    if places[1].is_dir():
        return places[1]
    raise ConfigError(f"this installation of carefl-secure lacks its folder {name}; reinstall the package")


def resolve_shipped(path: Path) -> Path:
    """Return the file that ``carefl:FOLDER/NAME.yaml`` stands for, if shipped; any other path as it is."""
    text = path.as_posix()
    if not text.startswith(PREFIX):
        return path
    root = shipped_folder("configs")
    known = {
        file.relative_to(root).as_posix(): file
        for folder in ("tasks", "experiments")
        for file in sorted((root / folder).glob("*.yaml"))
    }
    asked = text.removeprefix(PREFIX)
    if asked not in known:
        raise ConfigError(
            f"no configuration {asked!r} is shipped; choose one of {', '.join(PREFIX + name for name in known)}"
        )
    return known[asked]
