"""Errors that a user can act on: each is a sentence, shown without a traceback."""


class PipelineError(Exception):
    """Something that the user has to know or to decide; the message says what, where and what to do."""


class SettingsError(PipelineError):
    """One or more faulty settings; ``faults`` holds a sentence for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. No KeyboardInterrupt, which Lightning would take for its own."""
