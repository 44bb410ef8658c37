"""How many replicas are wanted. Ray's controller gets this class by value, so this file imports nothing of ours."""

from typing import Any


class ByRequests:
    """As many replicas as bring the requests of each below two targets: of those that are computed, and that wait.

    Ray's own policy counts what a replica has in hand, whatever it is: a session that is open and silent, a probe, an
    answer that its reader takes slowly. The engine knows which of them compute.

    Args:
        running: requests of a replica that are computed.
        waiting: requests of a replica that wait.
    """

    def __init__(self, running: float, waiting: float) -> None:
        self._targets = {"running": running, "waiting": waiting}

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Replicas, before Ray applies its delays and bounds; the state is empty."""
        told = context.aggregated_metrics or {}
        if not told.get("running"):  # no replica has told yet
            return context.target_num_replicas, {}
        return max(sum(told.get(name, {}).values()) / target for name, target in self._targets.items()), {}
