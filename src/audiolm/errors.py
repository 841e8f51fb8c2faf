"""The caller's mistakes. Everything a person can get wrong raises this one class; the program prints its
single line and ends with exit code 2, the server answers with the same words."""


class InputError(ValueError):
    """A wrong input: the message is one line that names the file or option and says what to do about it."""
