"""How fast something goes, for progress bars. Imports no torch."""

from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text


class RateColumn(ProgressColumn):
    """Units a second over the last half minute; ``rate`` of the task, or of the column, names what that is."""

    def __init__(self, rate: str = "a second", table_column: Column | None = None) -> None:
        super().__init__(table_column)
        self.rate = rate

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {task.fields.get('rate', self.rate)}")
