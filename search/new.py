"""Starting a project: a workload file and a config to fill in, which run as they are."""

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from spaces.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")  # a module, a file and a study are called so


def new(name: str, folder: Path) -> tuple[Path, Path]:
    """Write NAME.py and NAME.yaml into a folder.

    Args:
        name: of the files and of the study.
        folder: where they go; it must exist.

    Returns:
        The two files.

    Raises:
        ConfigError: the name cannot be a module's, a file is there already, or one cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"NAME: given {name!r}, allowed letters, digits and underscores as in my_model, which names a module; "
            "the files are written into the folder you are in"
        )
    files = folder / f"{name}.py", folder / f"{name}.yaml"
    for file in (*files, folder / f"{name}.safetensors"):
        if file.exists():
            raise ConfigError(f"{file} exists, and nothing is overwritten: move it, or take another name")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"NAME: given {name!r}, but {name}.py would hide an installed module of that name")
    for file, template in zip(files, ("workload.py.tpl", "search.yaml.tpl"), strict=True):
        text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(name=name)
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    return files
