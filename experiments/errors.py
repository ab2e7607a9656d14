"""What is wrong with the input, as against with the program."""


class InputError(ValueError):
    """Bad input: the message names the place, the value and the remedy. Command lines answer it with exit code 2."""


class Infeasible(ValueError):
    """A combination that a method cannot serve, such as a budget too small for one row of every table."""


class Diverged(RuntimeError):
    """Training left the finite numbers."""
