"""Figures, printed as they come: what was measured, what it must be, and whether it is."""

import json
import sys


class Report:
    def __init__(self, path=None):
        self.file = open(path, "w") if path else None
        self.failed = 0

    def say(self, text=""):
        print(text, flush=True)

    def raw(self, part, **values):
        """One line for machines."""
        if self.file:
            self.file.write(json.dumps({"part": part} | values) + "\n")
            self.file.flush()

    def figure(self, part, what, value, unit="", most=None, least=None):
        """A figure with its bound; without one it is only told."""
        ok = (most is None or value <= most) and (least is None or value >= least)
        bound, verdict = "", "    "
        if most is not None or least is not None:
            verdict = "PASS" if ok else "FAIL"
            bound = f"at most {most:g}" if most is not None else f"at least {least:g}"
            self.failed += not ok
        digits = 3 if value < 10 else 1
        shown = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
        self.say(f"{verdict}  {part:6} {what:62} {shown:>9} {unit:4} {bound}")
        self.raw(part, figure=what, value=value, unit=unit, most=most, least=least, ok=ok)
        return ok

    def note(self, part, text):
        self.say(f"      {part:6} {text}")
        self.raw(part, note=text)

    def problem(self, part, text):
        """Something that must not be, without a figure."""
        self.failed += 1
        self.say(f"FAIL  {part:6} {text}")
        self.raw(part, problem=text)

    def progress(self, text):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            if not text:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
