"""The exception tree; every class carries the process exit code it stands for.

AutoparError (1)
|-- InputError (2)            bad file, flag, target or value
|   `-- TraceError (2)        a model that torch.export cannot capture
|-- InfeasibleError (3)       no plan satisfies the constraints
|-- TrainingError (4)         a rank failed while training
|-- GateError (5)             --verify, --tolerance or --fail-if did not hold
`-- EnvironmentUnableError (6)  missing backend, device, port, optional package
"""

from typing import ClassVar


class AutoparError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: What is wrong, the offending value and the constraint, in one line.
        hint: The next step a user can take.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal"
    status: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # shown by tracebacks, in scripts that use the API

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[AutoparError], message: str, hint: str | None) -> AutoparError:
    return kind(message, hint=hint)


class InputError(AutoparError):
    """A file, flag, target or value given by the user is unusable."""

    exit_code = 2
    code = "bad_input"
    status = "invalid"


class TraceError(InputError):
    """torch.export cannot capture the task; the message names the construct."""

    code = "cannot_trace"


class InfeasibleError(AutoparError):
    """No plan satisfies the constraints; the hint names the smallest relaxation that works."""

    exit_code = 3
    code = "infeasible"
    status = "infeasible"


class TrainingError(AutoparError):
    """A rank failed while training; the message names the first failing rank and its log."""

    exit_code = 4
    code = "training_failed"


class GateError(AutoparError):
    """A check the user asked for did not hold (verify, tolerance, fail-if)."""

    exit_code = 5
    code = "gate_failed"


class EnvironmentUnableError(AutoparError):
    """This host lacks something the command needs: a backend, device, port or package."""

    exit_code = 6
    code = "environment"
