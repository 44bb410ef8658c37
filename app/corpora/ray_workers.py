"""Who scores a corpus on a cluster: actors over Ray Data, each with a bundle of its own.

An actor that is lost is replaced, and what it had in hand is done again, at least once; a row is given on when its clip
has none yet, so each has one. Clips whose block was lost too often are tried again one at a time, so that one clip that
ends its process costs no other its score.
"""

import logging
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from app.corpora.clips import Clip
from app.corpora.ray_rounds import rounds
from app.corpora.scoring import Job, failure
from app.corpora.workers import TRIES, Row
from app.errors import UserError

BLOCK_CLIPS = 16  # of a block: what is done again when an actor is lost, and how often the driver hears of rows
PASSES = (BLOCK_CLIPS, 1, 1)  # clips of a block: what one pass has lost is for the next


class ScoreBlocks:
    """An actor: a model, and a row for each clip of a block."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        self._scorer = job.load()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[bytes]]:
        """Pickled clips to pickled rows: Arrow would want columns, and a row has what its clip gives."""
        clips = [pickle.loads(bytes(clip)) for clip in block["clip"]]  # noqa: S301  # of our own driver
        return {"row": [pickle.dumps(self._scorer.row(clip)) for clip in clips]}


class RayWorkers:
    """So many actors on the cluster that `ray.init` finds: ``RAY_ADDRESS``, one of this machine, or a new one here.

    Args:
        job: what each of them scores with; its bundle and the clips must be there on each node.
        count: actors; None = as many as the cluster's cores, or its GPUs, take.
    """

    def __init__(self, job: Job, count: int | None) -> None:
        self._job, self._count = job, count
        self._gpus = 1.0 if job.device.startswith("cuda") else 0.0

    def rows(self, clips: Iterable[Clip]) -> Iterator[Row]:
        """A row a clip, as they are done. Raises UserError when an actor does not even load the bundle."""
        coming = iter(clips)
        first = next(coming, None)
        if first is None:
            return
        with connected():
            for some in rounds(chain([first], coming)):
                left = {clip.id: clip for clip in some}
                for block_clips in PASSES:
                    for row in self._pass(list(left.values()), block_clips):
                        if left.pop(row["id"], None) is not None:
                            yield row
                for clip in left.values():
                    yield failure(
                        clip, "worker_lost", "the process that scored it ended, each time, at last over it alone"
                    )

    def _actors(self, clips: int) -> int:
        import ray

        if self._count is not None:
            return min(self._count, clips)
        found = ray.cluster_resources()
        able = found.get("GPU", 0.0) if self._gpus else found.get("CPU", 0.0) / self._job.threads
        return max(1, min(int(able), clips))

    def _pass(self, clips: list[Clip], block_clips: int) -> Iterator[Row]:
        """Rows of what is not lost, some of them perhaps twice."""
        import ray

        if not clips:
            return
        actors = self._actors(-(-len(clips) // block_clips))
        items = [{"clip": pickle.dumps(clip)} for clip in clips]
        blocks = max(1, -(-len(items) // block_clips))
        scored = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            ScoreBlocks,
            fn_constructor_args=(self._job,),
            batch_size=None,  # a block as it is
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),  # no other is lost
            num_cpus=self._job.threads,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=TRIES - 1 if block_clips > 1 else 0,
        )
        try:
            for found in scored.iter_rows():
                row: Row = pickle.loads(found["row"])  # noqa: S301  # of our own actors
                yield row
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray could not go on: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def connected() -> Iterator[None]:
    """A Ray that says nothing on our terminal; one that was there before is left as it was."""
    import ray
    from ray.data import DataContext

    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what is missing is asked for again
    told, before = logging.getLogger("ray.data"), logging.getLogger("ray.data").level
    told.setLevel(logging.CRITICAL)  # of what it has lost there are rows, or none
    try:
        yield
    finally:
        told.setLevel(before)
        if began:
            ray.shutdown()
