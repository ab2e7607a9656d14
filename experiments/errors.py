"""The errors of the input, as opposed to errors of the program."""


class InputError(ValueError):
    """The input is wrong: the message names the place, the value and the remedy. Command lines exit with code 2."""


class Infeasible(ValueError):
    """A method cannot serve a combination, such as a budget too small for one row of every table."""


class Diverged(RuntimeError):
    """The training has left the finite numbers."""
