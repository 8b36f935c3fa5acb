"""The `d2det` command: one door to everything.

A verb is a type of options and a function that carries them out, both named here and imported only
when the verb is used; so the command starts fast, and verbs that need no Ray never import it.

Exit codes: 0 done, 1 failed, 2 the command line asks for something impossible, 3 labelled with more
bad files than were to be tolerated, 130 interrupted.
`D2DET_DEBUG=1` shows where an error was raised.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2det import __version__

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Verb:
    """One verb of the command.

    summary: for the list of verbs.
    run: "module:function" that takes the options and returns an exit code.
    options: "module:Class" of the options.
    parse: "module:function" from arguments to options, for a verb that reads a file first.
    """

    summary: str
    run: str
    options: str
    parse: str = ""


VERBS: dict[str, Verb] = {
    "train": Verb(
        "train on COCO-format data with Ray, on any number of machines",
        options="d2det_platform.train.options:TrainOptions",
        parse="d2det_platform.train.command:parse",
        run="d2det_platform.train.command:run",
    ),
    "plan": Verb(
        "read the headers of a lake and tell what labelling it will take",
        options="d2det_platform.label.options:PlanOptions",
        run="d2det_platform.label.command:plan",
    ),
    "label": Verb(
        "label lakes of pictures and scenes with Ray: Parquet, COCO, maps, run card",
        options="d2det_platform.label.options:LabelOptions",
        run="d2det_platform.label.command:label",
    ),
    "merge": Verb(
        "commit what is labelled and write the exports anew",
        options="d2det_platform.label.options:MergeOptions",
        run="d2det_platform.label.command:merge",
    ),
    "retry-failed": Verb(
        "label the pictures of the error table again",
        options="d2det_platform.label.options:RetryOptions",
        run="d2det_platform.label.command:retry_failed",
    ),
    "predict": Verb(
        "find objects in pictures, folders and large scenes",
        options="d2det.inference.options:PredictCommand",
        run="d2det.inference.predict:run",
    ),
    "evaluate": Verb(
        "score results or weights: COCO, VOC, UAVDT, tiles and scenes",
        options="d2det.evaluation.evaluate:EvaluateCommand",
        run="d2det.evaluation.evaluate:run",
    ),
    "analyze": Verb(
        "tell where AP is lost, with plots in one HTML page",
        options="d2det.evaluation.analyze:AnalyzeCommand",
        run="d2det.evaluation.analyze:run",
    ),
    "convert": Verb(
        "turn an official checkpoint into a weights file",
        options="d2det.checkpoints.command:ConvertCommand",
        run="d2det.checkpoints.command:run",
    ),
    "presets": Verb(
        "list the rows of the paper's tables and the light relatives",
        options="d2det.presets.command:PresetsCommand",
        run="d2det.presets.command:run",
    ),
    "doctor": Verb(
        "say what is installed, which ops are compiled, and what to mend",
        options="d2det.doctor:DoctorCommand",
        run="d2det.doctor:run",
    ),
    "bench": Verb(
        "measure a preset or a weights file on this machine",
        options="d2det.inference.options:BenchCommand",
        run="d2det.inference.bench:run",
    ),
    "serve": Verb(
        "run the endpoint: HTTP in front of an autoscaled detector",
        options="d2det_platform.serve.options:ServeCommand",
        run="d2det_platform.serve.command:run",
    ),
    "serve-key": Verb(
        "make an API key for the endpoint",
        options="d2det_platform.serve.command:KeyCommand",
        run="d2det_platform.serve.command:run_key",
    ),
    "completion": Verb(
        "print a script that completes verbs and options in the shell",
        options="d2det_platform.completion:CompletionCommand",
        run="d2det_platform.completion:run",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out a command line and returns the exit code; errors are one line on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK if args else USAGE
    if args[0] == "--version":
        print(f"d2det {__version__}")
        return OK
    name, *rest = args
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        return _complain("d2det", f"unknown verb {name!r}; did you mean {near!r}?", USAGE)
    try:
        code = _run(name, rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _complain(f"d2det {name}", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; stdout is closed so that exit is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ValueError as error:
        # By house rule a person's mistake, whose message says what to change.
        return _complain(f"d2det {name}", str(error), USAGE)
    except OSError as error:
        wrong_path = isinstance(error, _WRONG_PATH)
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _complain(f"d2det {name}", message, USAGE if wrong_path else FAILED)


def _run(name: str, args: Sequence[str]) -> int:
    from d2det_platform import usage

    verb, prog = VERBS[name], f"d2det {name}"
    try:
        if verb.parse:
            parser = imported(verb.parse)
            options = usage.explained(lambda: parser(args), args)
        else:
            options = usage.parse(imported(verb.options), args, prog=prog)
    except SystemExit:  # help was printed
        return OK
    except usage.UsageError as error:
        return _complain(prog, f"{error} (see {prog} --help)", USAGE)
    return int(imported(verb.run)(options) or OK)


def imported(path: str) -> Any:
    """Returns the object at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _complain(prog: str, message: str, code: int) -> int:
    if os.environ.get("D2DET_DEBUG") and sys.exc_info()[1] is not None:
        raise  # the error being handled
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: d2det VERB [OPTIONS]\n\n"
        "D2Det (CVPR 2020): precise detection and instance masks in aerial and other pictures.\n\n"
        f"verbs:\n{verbs}\n\n"
        "d2det VERB --help says what a verb takes; d2det --version."
    )


if __name__ == "__main__":
    raise SystemExit(main())
