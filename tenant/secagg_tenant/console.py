"""Progress bars of a tenant at work, on a terminal; elsewhere JSON lines say the same.

A bar follows the event log: nothing is counted twice and nothing is shown that is not logged.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_BARS = {
    "training": ("training", "done", "of"),
    "upload_progress": ("uploading", "sent", "bytes"),
}


class ProgressBars:
    """One bar for training and one for the upload, and a line for whatever else happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:>10}"), BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), console=console,
        )  # fmt: skip

    def start(self) -> None:
        """Begin to draw."""
        self._progress.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def listen(self, name: str, fields: dict[str, object]) -> None:
        """For `EventLog.listen`."""
        if name not in _BARS:
            shown = " ".join(f"{key}={value}" for key, value in fields.items() if value != "")
            self._console.print(f"[bold]{name}[/bold] {shown}", highlight=False)
            return
        title, done, of = _BARS[name]
        total = fields.get(of)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(title, total=None)
        self._progress.update(
            self._tasks[name],
            completed=_number(fields.get(done)),
            total=None if total is None else _number(total),
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
