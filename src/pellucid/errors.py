"""The one exception for what a user can put right: bad input, a missing file, a typo in a specification."""


class PellucidError(ValueError):
    """Something the user gave is wrong. The message names the value, the rule and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
