"""Spreads work by Apache Beam: in this process, or on Dataflow and other engines by Beam's own options."""

import functools
import shlex
from collections.abc import Callable

from xlnet.errors import RunError, UserError


def runner(options: str) -> Callable[[Callable[[str], None], list[str]], None]:
    """Return what runs a function over items in a Beam pipeline.

    Args:
        options: Beam's, as typed: ``--runner DataflowRunner --project … --region … --temp_location gs://…``; empty:
            Beam's own runner, on this machine.

    Raises:
        UserError: Apache Beam is not installed, or its options cannot be read.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--beam-options cannot be read: {error}; write them as on a command line") from None
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError("--runner beam needs Apache Beam: pip install 'xlnet-pipeline[beam]'") from None
    return functools.partial(_run, words)


def _run(options: list[str], function: Callable[[str], None], items: list[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            # Without the reshuffle an engine may fuse both steps, and give all items to one worker.
            pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(function)
    except Exception as error:  # whatever the engine raises
        words = (str(error).strip() or type(error).__name__).splitlines()
        raise RunError(
            f"the Beam pipeline failed: {words[0]}; run again to go on with the shards that are done"
        ) from error
