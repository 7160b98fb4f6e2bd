"""The one exception a user is meant to read: what is wrong, where, how to mend it."""


class UserError(Exception):
    """A mistake in a config, a path or a file, told in one sentence and shown without a traceback."""
