"""The one exception family the command line turns into a single clear line."""


class UserError(Exception):
    """A mistake the user can mend: a bad file, an impossible setting, a device that is not there.

    The message is one line that names the argument or file, what came, and what is accepted. Subclasses also
    derive from the built-in exception that fits (ValueError, OSError, ...), so Python callers need not know this one.
    """
