"""A progress bar with the time left; in a log file, one line for each stage instead."""

import io
import sys
from collections.abc import Iterable

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar where stderr is a terminal; else one line when the stage ends."""

    def __init__(
        self,
        iterable: Iterable[object] | None = None,
        *,
        desc: str | None = None,
        total: float | None = None,
        initial: float = 0,
        unit: str = "",
        disable: bool = False,
    ) -> None:
        """A bar of `total` steps, or of as many as `iterable` has; `disable` silences all."""
        self.is_line = not disable and not sys.stderr.isatty()
        super().__init__(
            iterable,
            desc=desc,
            total=total,
            initial=initial,
            unit=unit,
            disable=disable,
            file=Nowhere() if self.is_line else None,
        )

    def close(self) -> None:
        """End the bar; a second call does nothing."""
        is_first = not self.disable
        super().close()
        if self.is_line and is_first:
            sys.stderr.write(f"{self.summary()}\n")

    def summary(self) -> str:
        """The stage in one line: what was done, in which time, and the last figures."""
        facts = self.format_dict
        of_all = "" if facts["total"] is None else f"/{facts['total']:g}"
        title = f"{self.desc.removesuffix(': ')}: " if self.desc else ""
        unit = "%" if self.unit == "%" else f" {self.unit}s" if self.unit else ""
        time = self.format_interval(facts["elapsed"])
        return f"{title}{self.n:g}{of_all}{unit} in {time}" + f", {self.postfix}" * bool(
            self.postfix
        )


class Nowhere(io.TextIOBase):
    """A file that keeps nothing."""

    def write(self, text: str) -> int:
        """Take the text; its length."""
        return len(text)
