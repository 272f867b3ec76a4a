"""A run's model for others: an ordinary transformers or PEFT folder with tokenizer and card, on the hub too if asked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covey import __version__, checkpoint, files
from covey.config.text import read, read_text
from covey.engines.adapters import merge_adapter
from covey.engines.folders import ADAPTER, check_folder, find_folder
from covey.engines.loading import DTYPES, load_model
from covey.engines.peft_folder import read_stored
from covey.errors import ConfigError, ServerError, did_you_mean
from covey.folder import check_free
from covey.models import find_model
from covey.models.trained import Facts, write_trained_card
from covey.observe.show import summary
from covey.target import Target, portable

CARD = "README.md"
_KEPT = {".json", ".safetensors", ".jinja", ".txt", ".model", ".md", ".yaml", ".svg"}
"""Kinds of files that belong to a model's folder."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: the folder, whether it is a `model` or an `adapter`, and the address on the hub if it went there."""

    folder: Path
    form: str
    base: str
    url: str | None = None


def export(
    target: Target,
    out: Path,
    *,
    merge: bool = False,
    dtype: str | None = None,
    licence: str | None = None,
    repository: str | None = None,
) -> Exported:
    """Write the folder `out`, whole or not at all, and return what it is.

    An adapter stays one; with `merge` it becomes part of its base. `dtype` converts weights. `repository` is the name that the
    card gives the model. Raises ConfigError for what cannot be, OutputError where `out` holds something.
    """
    where = f"model {target.model}"
    folder = find_folder(target.model, where)
    adapter = (folder / ADAPTER).is_file()
    _check_wishes(target, adapter=adapter, merge=merge, dtype=dtype)
    check_free(out, "Choose another folder.")
    facts = gather_facts(target, folder, licence=licence)
    facts = replace(facts, name=repository or out.name, form="adapter" if adapter and not merge else "model")
    facts = replace(facts, changes=_tell_changes(facts, merge=merge, dtype=dtype))
    if not adapter:
        check_folder(folder, where)
    fill = _copier(folder) if not merge and dtype is None else _writer(target, dtype)
    text = write_trained_card(facts)

    def fill_all(place: Path) -> None:
        fill(place)
        if not (place / CARD).exists():
            files.write_bytes(place / CARD, text.encode())

    files.write_folder(out, fill_all)
    return Exported(folder=out, form=facts.form, base=facts.base)


def _check_wishes(target: Target, *, adapter: bool, merge: bool, dtype: str | None) -> None:
    if merge and not adapter:
        raise ConfigError("--merge", f"{target.named} has no adapter", "Leave it out: the model is whole.")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("--dtype", f"there is no dtype '{dtype}'", did_you_mean(dtype, DTYPES))
    if dtype is not None and adapter and not merge:
        raise ConfigError("--dtype", f"{target.named} is an adapter, whose small steps need float32", "Add --merge.")


def _copier(folder: Path) -> Callable[[Path], None]:
    """Copies the files of a model's folder as they are."""

    def fill(place: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in _KEPT and path.name != files.MANIFEST:
                shutil.copyfile(path, place / path.name)

    return fill


def _writer(target: Target, dtype: str | None) -> Callable[[Path], None]:
    """Writes the model anew: in one piece, and in the wanted format, to which it is rounded once."""
    config = _read_config(target)
    own = config["model"]["dtype"] if config else "float32"
    loaded = load_model(target.model, dtype=own)
    model: Any = merge_adapter(loaded.model) if loaded.adapted else loaded.model
    if dtype is not None:
        model = model.to(DTYPES[dtype])

    def fill(place: Path) -> None:
        with checkpoint.foreign_errors(place):
            weights = dict(model.named_parameters())
            checkpoint.export(place, model=model, tokenizer=loaded.tokenizer, weights=weights)

    return fill


def gather_facts(target: Target, folder: Path, *, licence: str | None = None) -> Facts:
    """What a run's files, or a folder's alone, say of a model; paths of this machine are cut to their last part."""
    stored = read_stored(folder, f"model {target.model}") if (folder / ADAPTER).is_file() else None
    config = _read_config(target)
    base = stored.base if stored is not None else str(config["model"]["path"]) if config else ""
    hub_base = is_hub_id(base)
    facts = Facts(
        name=target.named,
        form="model",
        base=base if hub_base or not base else _short(base),
        hub_base=hub_base,
        licence=licence,
        rank=stored.raw.get("r") if stored is not None else None,
    )
    if config is None or target.run is None:
        return facts
    from covey.config.values import as_recipe

    return replace(
        facts,
        run=summary(target.run),
        config={name: portable(value) for name, value in config.items()},
        recipe_digest=as_recipe(config["recipe"]).digest,
        step=target.step,
        versions=_read_versions(target.run),
    )


def _tell_changes(facts: Facts, *, merge: bool, dtype: str | None) -> str:
    """What the export did to the weights, in words."""
    told = []
    if merge:
        rounded = ((facts.config or {}).get("model") or {}).get("quantize")
        apart = f" They were trained on a base rounded to {rounded}; this one is not." if rounded else ""
        told.append(f"The adapters of the training are merged into the base.{apart}")
    if dtype is not None:
        told.append(f"The weights are stored in {dtype}.")
    return " ".join(told)


def _read_config(target: Target) -> dict[str, Any] | None:
    if target.run is None:
        return None
    file = target.run / "run.yaml"
    return read(read_text(file), str(file))[0]


def _read_versions(run: Path) -> Mapping[str, str]:
    """Versions that trained the model, as the run wrote them down; of covey alone where it did not."""
    try:
        found = json.loads((run / "machine.json").read_text(encoding="utf-8"))["versions"]
        return {name: found[name] for name in ("covey", "torch", "transformers") if name in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {"covey": __version__}


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the hub, and not a folder or the embedded model."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(find_model(name)).expanduser().exists()


def _short(base: str) -> str:
    return Path(base).name if Path(base).is_absolute() else base


def check_push(repository: str, target: Target, *, merge: bool) -> str:
    """The token to push with. A push that cannot succeed is refused here, before anything is written."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    from covey.hub import hub_answers

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ConfigError("--push", f"got {repository!r:.100}", "Write OWNER/NAME.") from None
    if "/" not in repository:
        raise ConfigError("--push", f"got {repository!r}", "Write OWNER/NAME.")
    folder = find_folder(target.model, f"model {target.model}")
    if (folder / ADAPTER).is_file() and not merge:
        base = read_stored(folder, f"model {target.model}").base
        if not is_hub_id(base):
            found = f"the adapter's base {base} is on this machine only"
            raise ConfigError("--push", found, "Add --merge, so that others can load it.")
    token = huggingface_hub.get_token()
    endpoint = huggingface_hub.constants.ENDPOINT
    if token is None:
        raise ServerError(f"hub {endpoint}", "there is no token", "Run `hf auth login`, or set HF_TOKEN.")
    if not hub_answers():
        raise ServerError(
            f"hub {endpoint}", "it does not answer, or HF_HUB_OFFLINE is set", "Leave --push out, or try again."
        )
    return str(token)


def push(folder: Path, repository: str, *, token: str, private: bool = True) -> str:
    """Make the repository (a private one) unless it is there, upload the folder in one commit, return its address."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    api, shown = huggingface_hub.HfApi(token=token), not are_progress_bars_disabled()
    endpoint = huggingface_hub.constants.ENDPOINT
    disable_progress_bars()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=[files.MANIFEST],
            commit_message=f"Upload from covey {__version__}",
        )
        return str(address)
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        status = getattr(getattr(error, "response", None), "status_code", None)
        right = f"The folder is written; push it later: hf upload {repository} {folder}"
        if status in (401, 403):
            right = f"Use a token that may write to {repository.partition('/')[0]}. {right}"
        found = f"it refuses the upload ({_one_line(error)})" if status else f"the upload failed ({_one_line(error)})"
        raise ServerError(f"hub {endpoint}", found, right) from None
    finally:
        if shown:
            enable_progress_bars()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
