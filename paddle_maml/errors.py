"""The one exception type for failures that a user can cause and mend."""


class UserError(Exception):
    """A user's input or machine stands in the way.

    The message is one sentence that says what was wrong, with which value, and what to do. The command line
    prints it and exits with status 2; a caller of the library can catch it like any exception. It is one
    line, whatever lines a path or another library's error has that it quotes.
    """

    def __init__(self, message: str = ""):
        super().__init__(" ".join(message.splitlines()))
