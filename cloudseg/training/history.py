"""What happened in a training run: one line of JSON a step, TensorBoard's events, and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cloudseg.training.events import EventFile
from cloudseg.training.judge import Verdict
from cloudseg.training.picture import encode_png

LINES_NAME = "steps.jsonl"
REPORT_NAME = "report.html"
PICTURES_NAME = "sections"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the training log.

    Attributes
    ----------
    step
        Counted from 0.
    loss, learning_rate
        Of this step.
    seconds
        Since this process began to train.
    waited_s
        Time that this step waited for examples.
    validation
        Loss on the validation boxes, if it was measured.
    verdict
        Their segmentation, if it was measured.
    """

    step: int
    loss: float
    seconds: float
    learning_rate: float = 0.0
    waited_s: float = 0.0
    validation: float | None = None
    verdict: Verdict | None = None

    def as_line(self) -> dict[str, Any]:
        """Return what the log keeps."""
        line: dict[str, Any] = {
            "step": self.step,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "seconds": round(self.seconds, 3),
            "waited_s": round(self.waited_s, 4),
        }
        if self.validation is not None:
            line["validation"] = self.validation
        if self.verdict is not None:
            line["segmentation"] = {
                "score": self.verdict.score,
                "threshold": self.verdict.threshold,
                "curve": [list(point) for point in self.verdict.curve],
                "boxes": [scores.as_dict() for scores in self.verdict.scores],
            }
        return line


class History:
    """Writes the log of a run into a folder.

    Parameters
    ----------
    folder
        Receives ``steps.jsonl``, ``sections/*.png`` and TensorBoard's files.
    first_step
        Step at which this process begins; lines from there on, of a process that was stopped before it saved, go.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self.folder = folder
        (folder / PICTURES_NAME).mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(folder) if line["step"] < first_step]
        part = folder / f"{LINES_NAME}.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(folder / LINES_NAME)
        for old in (folder / PICTURES_NAME).glob("*.png"):
            if old.stem.isdigit() and int(old.stem) > first_step:
                old.unlink()
        self._lines: TextIO = (folder / LINES_NAME).open("a", encoding="utf-8")
        self._events = EventFile(folder, first_step=first_step)

    def add(self, progress: Progress) -> None:
        """Write down one step."""
        self._lines.write(json.dumps(progress.as_line()) + "\n")
        self._lines.flush()
        step = progress.step
        self._events.scalar("loss/training", progress.loss, step=step)
        self._events.scalar("learning_rate", progress.learning_rate, step=step)
        if progress.validation is not None:
            self._events.scalar("loss/validation", progress.validation, step=step)
        if progress.verdict is not None:
            self._events.scalar("segmentation/score", progress.verdict.score, step=step)
            self._events.scalar("segmentation/threshold", progress.verdict.threshold, step=step)
            self._events.image("validation/section", progress.verdict.picture, step=step)
            path = self.folder / PICTURES_NAME / f"{step + 1:08d}.png"
            path.write_bytes(encode_png(progress.verdict.picture))

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._events.close()


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; none if there is no log. A last line that a killed process left half is dropped."""
    path = folder / LINES_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
