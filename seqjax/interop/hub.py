"""Where a checkpoint lies: a folder, or a name on the Hugging Face hub."""

import pathlib
import re

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
FILES = ("*.json", "*.safetensors", "tokenizer*")


def folder(path: str | pathlib.Path) -> pathlib.Path:
    """The folder of a checkpoint, fetched where it is a hub id.

    Args:
      path: a folder, or "owner/name", or "owner/name@revision".

    Raises:
      ValueError: there is no such folder, and no way to fetch one.
    """
    found = pathlib.Path(path).expanduser()
    if found.is_dir():
        return found
    if not isinstance(path, str) or not _ID.fullmatch(path):
        raise ValueError(
            f"{path} is no folder, and no hub id such as owner/name either"
        )
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is no folder; to fetch it from the hub, install "
            "huggingface_hub (pip install 'seqjax[hub]'), or download it and "
            "give its folder"
        ) from error
    name, _, revision = path.partition("@")
    return pathlib.Path(
        huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(FILES)
        )
    )
