"""The verbs plan, label, merge and retry-failed: from options to an exit code.

0 done, 1 failed, 3 finished with more bad files than `--max-bad-fraction`. A person's mistakes are
ValueErrors, which the command line turns into 2.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from d2det_platform.label.calibrate import expected_seconds
from d2det_platform.label.commit import IncompleteShardError
from d2det_platform.label.driver import Outcome, label_run, plan_run
from d2det_platform.label.engine import Engine, commit
from d2det_platform.label.files import StoreUnavailableError
from d2det_platform.label.finish import finish, read_success
from d2det_platform.label.labels import committed
from d2det_platform.label.layout import Run, open_run, read_run
from d2det_platform.label.lock import Lock
from d2det_platform.label.models import describe_model
from d2det_platform.label.options import LabelOptions, MergeOptions, PlanOptions, RetryOptions
from d2det_platform.label.plan import Plan, read_plan
from d2det_platform.label.plan_table import plan_table
from d2det_platform.label.progress import Progress
from d2det_platform.label.retry import retry_run
from d2det_platform.store import RunStore

OK, FAILED, TOO_MANY_BAD = 0, 1, 3
_RAISED = re.compile(r"^(?!ray\.exceptions\.)[\w.]*(?:Error|Exception): (.+)$", re.MULTILINE)
"""The last line of a trace, but for those that Ray adds."""


def plan(options: PlanOptions) -> int:
    """Plans only, prints the table, and returns the exit code."""
    return label(options)


def label(options: LabelOptions) -> int:
    """Labels and returns the exit code."""
    store = RunStore(options.out)
    run = open_run(store, options, describe_model(options))
    if not options.dry_run and (done := read_success(store, run, options.output)) is not None:
        _say(f"{options.out} is complete already: nothing was predicted")
        return _code(Outcome(done, 0), options)
    return _with_engine(store, run, lambda engine: _label(store, run, engine))


def merge(options: MergeOptions) -> int:
    """Commits complete shards, writes the outputs anew, and returns the exit code."""
    store = RunStore(options.out)
    run = read_run(store)
    plan = _plan_of(store, run)
    with Lock(store, timeout_s=run.options.work.lock_timeout_s):
        missing = []
        parts = committed(store, run)
        for shard in plan.shards:
            if run.layout.part_name(shard.index) not in parts:
                try:
                    commit(store, run, shard.index, 1)
                except IncompleteShardError:
                    missing.append(shard)
        if missing:
            pictures = sum(shard.pictures for shard in missing)
            _say(
                f"{pictures:,} pictures of {len(missing)} shards are not labelled yet: "
                "run d2det label again"
            )
            return FAILED
        outcome = Outcome(finish(store, run, plan, options.output, None), 0)
    return _code(outcome, run.options)


def retry_failed(options: RetryOptions) -> int:
    """Labels the pictures of the error table again and returns the exit code."""
    store = RunStore(options.out)
    run = read_run(store)
    if options.weights:
        moved = run.options.model_copy(update={"weights": options.weights})
        run = Run(run.key, moved, run.model, run.identity)
    plan = _plan_of(store, run)

    def again(engine: Engine) -> int:
        outcome, before = retry_run(store, run, plan, engine, options.reasons)
        after = outcome.success["counts"]["errors"]
        _say(f"{before:,} pictures tried again, {after:,} errors are left")
        return _code(outcome, run.options)

    return _with_engine(store, run, again)


def _with_engine(store: RunStore, run: Run, work: Callable[[Engine], int]) -> int:
    """Does `work` as the only driver of the run; what fails for good is a line and an exit code."""
    with _gentle_end(), Lock(store, timeout_s=run.options.work.lock_timeout_s):
        engine = _ray_engine(store.url)
        try:
            return work(engine)
        except StoreUnavailableError as error:
            return _failed(store.url, str(error))
        except Exception as error:
            if not _is_ray_error(error):
                raise
            return _failed(store.url, _cause(error))
        finally:
            engine.close()


def _label(store: RunStore, run: Run, engine: Engine) -> int:
    planned = plan_run(store, run, engine, seen=_Counter())
    if run.options.dry_run:
        plan_table(store, run, planned, expected_seconds(store, run, planned))
        return OK
    progress = Progress(planned)
    try:
        outcome = label_run(store, run, planned, engine, progress=progress)
    except KeyboardInterrupt:
        progress.close()
        _say(f"stopped at {progress.line()}; the same command goes on from there")
        raise
    progress.close()
    counts = outcome.success["counts"]
    _say(
        f"{counts['labelled']:,} of {counts['pictures']:,} pictures labelled, "
        f"{counts['detections']:,} detections, {counts['errors']:,} errors: {run.options.out}"
    )
    return _code(outcome, run.options)


def _plan_of(store: RunStore, run: Run) -> Plan:
    plan = read_plan(store, run)
    if plan is None:
        raise ValueError(f"{store.url} holds a run that is not planned yet: run d2det label")
    return plan


def _code(outcome: Outcome, options: LabelOptions) -> int:
    if outcome.bad_fraction > options.max_bad_fraction:
        _say(
            f"{100 * outcome.bad_fraction:.1f} % of the pictures have errors, more than "
            f"--max-bad-fraction {options.max_bad_fraction:g} allows; see errors.parquet"
        )
        return TOO_MANY_BAD
    return OK


def _ray_engine(url: str) -> Engine:
    from d2det_platform.label.ray_engine import RayEngine  # ray starts slowly; merge needs none

    return RayEngine(url)


def _is_ray_error(error: Exception) -> bool:
    from ray.exceptions import RayError

    return isinstance(error, RayError)


def _cause(error: BaseException) -> str:
    """What a remote call raised in the end; Ray wraps it in a trace and advice of its own."""
    text = str(error).strip()
    raised = _RAISED.findall(text)
    return raised[-1] if raised else (text.splitlines() or [type(error).__name__])[-1]


def _failed(out: str, message: str) -> int:
    _say(f"failed: {message}")
    _say(f"what is done is kept in {out}; the same command goes on from there")
    return FAILED


def _say(line: str) -> None:
    print(f"d2det label: {line}", file=sys.stderr)


class _Counter:
    """Shows how many pictures planning has looked at."""

    def __init__(self) -> None:
        self._count, self._shown = 0, 0

    def __call__(self, more: int) -> None:
        self._count += more
        if self._count >= 2 * max(self._shown, 50_000):
            self._shown = self._count
            _say(f"{self._count:,} headers read")


@contextlib.contextmanager
def _gentle_end() -> Iterator[None]:
    """Takes SIGTERM for Ctrl-C, so that both end cleanly; only the main thread may."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
