"""The one exception type for mistakes that the user can mend."""


class UserError(ValueError):
    """Bad input: the message names the file, key or line, what was expected and what was found.

    Entry points print the message without a traceback and exit with status 2.
    """
