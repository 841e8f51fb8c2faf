"""User errors. Everything a user can get wrong raises this one class; the program prints the message and exits with
code 2, and the server answers with the same message."""


class InputError(ValueError):
    """Invalid input: the message is one line that names the file or option and says what to do about it."""
