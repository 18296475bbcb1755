"""raycnn VERB CONFIG.yaml [--dotted.path value ...]: flags are the config's paths; stdout holds the result alone."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from pydantic.fields import FieldInfo

from raycnn import verbs
from raycnn.config import fields, load_config
from raycnn.errors import ConfigError, Preempted, RaycnnError, StorageError, disk_full, printable
from raycnn.memory import collect_rarely
from raycnn.progress import Progress, quiet_logs
from raycnn.secrecy import masked

_VERBS = {
    "index": "read the source once: every object becomes a row of the manifest or is quarantined",
    "train": "train the run to its end, or continue it",
    "search": "try settings and unfreezing depths, and keep the best",
    "choose": "which network, and how deep: heads on the frozen features of several, at all their cuts",
    "lr-find": "find a learning rate: some steps at rising ones, which the run does not notice",
    "evaluate": "metrics of the best checkpoint on the test split",
    "predict": "predict a bucket, a folder or the test split to Parquet",
    "features": "what the network says of images before its head, a row each, to Parquet",
    "shift": "how far other images are from the training rows, and what to do about it",
    "plan": "what train would do and need, without training",
    "runs": "list the runs below run.storage",
    "doctor": "check this machine, the cluster and the object store before a run",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit with its code (0, or that of the RaycnnError it ended with)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments
    progress = Progress()
    quiet_logs()
    collect_rarely()
    code = 0
    try:
        result = run(arguments, progress)
        progress.close()
        lines = [json.dumps(result, allow_nan=False)] if as_json else _for_people(arguments[0], result).split("\n")
        print(masked("\n".join(map(printable, lines))))
        if arguments[0] == "train" and result["status"] == "preempted":
            code = Preempted.code
            print("preempted: everything is committed; the same command continues", file=sys.stderr)
        if arguments[0] == "doctor" and any(check["ok"] is False for check in result):
            code = 1
    except RaycnnError as error:
        progress.close()
        code = _tell(error, as_json)
    except Exception as error:
        progress.close()
        if "--verbose" in arguments:
            print(masked(traceback.format_exc()), file=sys.stderr)
        code = _tell(_unforeseen(error), as_json)
    except KeyboardInterrupt:
        progress.close()
        code = Preempted.code
        print("interrupted; the same command continues", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def _tell(error: RaycnnError, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": error.as_json()}))
    print(f"error: {error}", file=sys.stderr)
    return error.code


def _unforeseen(error: Exception) -> RaycnnError:
    if isinstance(error, OSError) and disk_full(error):
        where = str(error.filename or tempfile.gettempdir())
        return StorageError("no space left on the disk", where=where, fix="free some, or let TMPDIR name a larger disk")
    return RaycnnError(f"unexpected {type(error).__name__}: {error}", fix="--verbose shows where")


def run(arguments: Sequence[str], progress: Progress) -> Any:
    """The result of one command line.

    Raises:
        RaycnnError: as the verb ends.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    verb, path = options.pop("verb"), options.pop("config")
    address, verbose = options.pop("address"), options.pop("verbose")
    options.pop("json")
    extra = {"shard": options.pop("shard")} if verb == "index" else {}
    if options.pop("keep_bytes", False):
        options["shards.keep_bytes"] = "true"
    known = dict(fields())
    overrides = {name: _value(text, known[name]) for name, text in options.items() if text is not None}
    if verb == "runs" and path and not path.endswith((".yaml", ".yml")):
        return verbs.runs(path)
    if verb == "doctor":
        return verbs.doctor(load_config(path, overrides) if path else None, address=address)
    if path is None:
        raise ConfigError("no config given", where=f"raycnn {verb}", fix=f"raycnn {verb} CONFIG.yaml")
    config = load_config(path, overrides)
    if verb == "runs":
        return verbs.runs(config.run.storage)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints at times; stdout is for the result alone
        return getattr(verbs, verb.replace("-", "_"))(
            config, address=address, show=progress.show, verbose=verbose, **extra
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fix = "see raycnn --help and raycnn VERB --help"
        raise ConfigError(message, where="command line", fix=fix)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="raycnn", description="Fine-tune pretrained CNNs on labelled images with Ray.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for verb, text in _VERBS.items():
        sub = subparsers.add_parser(verb, help=text, description=text, allow_abbrev=False)
        sub.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the run's settings")
        sub.add_argument("--address", default="local", help="local: a private Ray here; auto or an address: join it")
        sub.add_argument("--json", action="store_true", help="one line, one JSON object, also on failure")
        sub.add_argument("--verbose", action="store_true", help="show Ray's own logs")
        if verb == "index":
            sub.add_argument("--shard", action="store_true", help="also write the images as tar shards")
            sub.add_argument("--keep-bytes", action="store_true", help="short for --shards.keep_bytes true")
        settings = sub.add_argument_group("settings")
        for name, info in fields():
            help_text = " ".join((info.description or "").split()).replace("%", "%%")
            settings.add_argument(f"--{name}", metavar="VALUE", help=f"{help_text}{_default(info)}")
    return parser


def _default(info: FieldInfo) -> str:
    return "" if info.is_required() else f" [{json.dumps(info.default, default=str)}]".replace("%", "%%")


def _value(text: str, info: FieldInfo) -> Any:
    """A flag's value, read as YAML would read it; text stays text where the field is a string."""
    if info.annotation is str:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _for_people(verb: str, result: Any) -> str:
    if verb == "evaluate":
        from raycnn.results.report import render

        return render(result)
    if verb == "search":
        from raycnn.searching.report import render as render_search

        return render_search(result)
    if verb == "train" and "folds" in result:
        from raycnn.searching.folds_report import render as render_folds

        return render_folds(result)
    if verb == "choose":
        from raycnn.results.choice_report import render as render_choice

        return render_choice(result)
    if verb == "shift":
        from raycnn.results.shift_report import render as render_shift

        return render_shift(result)
    if verb == "train":
        from raycnn.results.report import render_curves

        curves = render_curves(result.pop("curves"))
        return "\n\n".join(filter(None, (_for_people("", result), curves)))
    if verb == "lr-find":
        result = {name: value for name, value in result.items() if name != "curve"}
    if isinstance(result, list):
        return "\n".join("  ".join(f"{key} {_short(value)}" for key, value in row.items()) for row in result)
    width = max(len(key) for key in result)
    return "\n".join(f"{key:<{width}}  {_short(value)}" for key, value in result.items())


def _short(value: Any, limit: int = 20) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        shown = "; ".join(_short(item) for item in value[:limit]) or "-"
        return shown + (f"; and {len(value) - limit} more" if len(value) > limit else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
